"""Runs a command in a process group of its own and ends the group when its owner goes, however it goes.

`python guard.py OWNER GRACE COMMAND…`: OWNER is the pid of the process that starts this one, with a pipe as
standard input. It closes the pipe to have the command ended, and the kernel does so when the owner is killed.
A fork of the owner may keep the pipe open, so that this process's parent is watched as well. The command has
GRACE seconds between SIGTERM and SIGKILL. Exits as the command did, with 127 where it cannot be started.

It needs nothing but the standard library, and its memory is small: it outlives what it guards.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys

_LOOK_EVERY = 0.2  # seconds


def main(owner: int, grace: float, command: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr, flush=True)
        return 127
    try:
        while process.poll() is None and _is_there(owner):
            pass
    finally:
        _end_group(process, grace)
    code = process.returncode
    return 128 - code if code < 0 else code


def _is_there(owner: int) -> bool:
    """Waits a moment, or until the owner goes."""
    readable, _, _ = select.select([0], [], [], _LOOK_EVERY)
    return not (readable and not os.read(0, 4096)) and os.getppid() == owner


def _end_group(process: "subprocess.Popen[bytes]", grace: float) -> None:
    """Its children too, those of a command that has ended by itself included."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a second one would leave the group alive
    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # nobody of it is left
        os.killpg(group, number)


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))

"""Kills campaigns, and holds after every kill that nothing is half there and that `retake status` is right.

A campaign runs in a forked child. It is stopped first (SIGSTOP), so that it can be looked at while it lives
and nothing changes, and then killed (SIGKILL) and looked at again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from typer.testing import CliRunner

from loop.cli import app
from loop.stages import STAGES, plan

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def kill_until_done(start: Callable[[], int], kill: Callable[[int], str | None], root: Path) -> list[str]:
    """Starts campaigns and kills each one, until one ends by itself. Returns what each kill hit.

    start: begins a campaign in a child and returns its process id. kill: lets it run until it is stopped
    (SIGSTOP) and says where, or returns None when it has ended.
    """
    hits: list[str] = []
    while True:
        child = start()
        where = kill(child)
        if where is None:
            return hits
        hits.append(where)
        check(root, alive=True, where=where)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        check(root, alive=False, where=where)


def fork(work: Callable[[], Any]) -> int:
    """Calls `work` in a child, whose exit code is 0 if it returns and 1 if it raises."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def has_stopped(child: int) -> bool:
    """Waits until the child stops, or ends well."""
    status = os.waitpid(child, os.WUNTRACED)[1]
    if os.WIFSTOPPED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the campaign failed; see what it printed"
    return False


class AtOperations:
    """Stops a child before it changes its run directory: at each operation once, if `picks` picks it.

    An operation is a file opened for writing, a rename, a removal, a folder made or removed: its name tells
    the stage, the call, the path and which of several such ones it is. Python itself announces it (its audit
    events), so no write of retake's own code can be overlooked.
    """

    def __init__(self, root: Path, picks: Callable[[str], bool] = lambda name: True) -> None:
        self.root, self.picks = root, picks
        self.seen: set[str] = set()
        self._read, self._write = os.pipe()

    def listen(self, act: Callable[[str], None] | None = None) -> None:
        """In the child, before its work. `act`: what to do at an operation, in place of a stop."""
        act = act or self._stop
        counts: Counter[str] = Counter()
        stage = "start"

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal stage
            if event not in _CHANGES or not (path := self._path(event, arguments)):
                return
            if log := re.match(r"logs/attempt-N/(\d+-\w+)\.log", path):
                stage = log[1]
            name = f"{stage}: {event} {path}"
            counts[name] += 1
            name += f" #{counts[name]}"
            if name not in self.seen and self.picks(name):
                act(name)

        sys.addaudithook(hear)

    def kill(self, child: int) -> str | None:
        if not has_stopped(child):
            return None
        name = self.told()
        self.seen.add(name)
        return name

    def tell(self, text: str) -> None:
        """From the child to its parent."""
        os.write(self._write, text.encode())

    def told(self) -> str:
        """All that a child has told; "" if it has told nothing."""
        return os.read(self._read, 2**16).decode() if select.select([self._read], [], [], 0)[0] else ""

    def _stop(self, name: str) -> None:
        self.tell(name)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _path(self, event: str, arguments: tuple[Any, ...]) -> str:
        """Relative to the run; "" for reads and for other places."""
        path = arguments[0]
        if event == "open" and (isinstance(path, int) or not arguments[2] & _WRITES):
            return ""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path, root = os.fspath(path), str(self.root)
        if not isinstance(path, str) or not (path == root or path.startswith(root + "/")):
            return ""
        return re.sub(r"attempt-\d+", "attempt-N", os.path.relpath(path, root))


class AtRandom:
    """Stops a child from outside after a random time, up to `most` seconds of its life.

    growth: of `most` with each child, so that a machine that gets slower comes to an end, too.
    """

    def __init__(self, seed: int, most: float, growth: float = 1.0) -> None:
        self.random, self.most, self.growth = Random(seed), most, growth

    def kill(self, child: int) -> str | None:
        seconds = self.random.uniform(0, self.most)
        self.most *= self.growth
        time.sleep(seconds)
        os.kill(child, signal.SIGSTOP)  # a child that has ended is still there until it is waited for
        return f"after {seconds:.3f} s" if has_stopped(child) else None


def check(root: Path, alive: bool, where: str) -> None:
    """Raises AssertionError if an artefact is not whole, or if `retake status` says what is not so."""
    committed = {(round, stage): folder for round, stage, folder in _artefacts(root)}
    told = CliRunner().invoke(app, ["status", str(root), "--json"])
    if not (root / "resolved.json").exists():
        assert not committed and told.exit_code == 2, f"{where}: {told.output}"
        return
    assert told.exit_code == 0, f"{where}: {told.output} {told.exception!r}"
    status = json.loads(told.stdout)
    steps = plan(status["rounds"])
    assert set(committed) <= set(steps)
    held = _is_held(root)
    assert alive or not held, where
    last = [json.loads(line)["event"] for line in (root / "events.jsonl").read_text().splitlines() if line]
    finished = bool(last) and last[-1] == "campaign_finished"
    assert status["state"] == ("running" if held else "done" if finished else "interrupted"), where

    states = {(of["round"], of["stage"]): of["state"] for of in status["stages"]}
    assert list(states) == steps and {s for s in steps if states[s] == "committed"} == set(committed), where
    running = [step for step in steps if states[step] == "running"]
    left = [step for step in steps if step not in committed]
    if held and ".work-" in where and not where.startswith("start"):
        assert running == left[:1], where
    assert running == [] or (held and running == left[:1]), where
    assert {states[step] for step in left} <= {"running", "pending"}, where

    def newest(stage: str, key: str) -> int:
        gates = {round: folder for (round, name), folder in committed.items() if name == stage}
        return max(
            (k for k, gate in gates.items() if json.loads((gate / "gate.json").read_text())[key]), default=0
        )

    assert status["generator_in_force"] == newest("gate", "keep"), where
    assert status["judge_in_force"] == newest("judge_gate", "use"), where
    assert status["rounds_done"] == max((k for k, stage in committed if stage == "gate"), default=0), where


def _artefacts(root: Path) -> Iterator[tuple[int, str, Path]]:
    """(round, stage, folder) of all that looks committed. Raises AssertionError where one is not whole."""
    for folder in sorted(root.glob("round-*/[!.]*")):
        assert folder.name in STAGES, folder
        manifest = json.loads((folder / "manifest.json").read_text())
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        del files["manifest.json"]
        assert files.keys() == manifest["files"].keys(), folder
        for name, path in files.items():
            content = path.read_bytes()
            known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            assert known == manifest["files"][name], path
        yield int(folder.parent.name[6:]), folder.name, folder


def _is_held(root: Path) -> bool:
    with open(root / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True

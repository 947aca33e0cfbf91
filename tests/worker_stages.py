"""Stage functions that worker processes run in tests/test_launchers.py."""

import errno
import logging
import os
import signal
import sys
import time

from loop.errors import UserError
from loop.stages import StageContext


def reports(context: StageContext) -> None:
    print("printed")
    os.write(1, b"printed by C\n")
    print("complained", file=sys.stderr)
    print('{"done": true}', flush=True)
    context.progress.start(2, "clips")
    context.progress.advance()
    context.progress.advance()
    context.log.warning("it is %s", "late")
    logging.getLogger("library").info("another library")
    try:
        raise ValueError("seen")
    except ValueError:
        context.log.info("with a traceback", exc_info=True)
    known = [context.config.name, context.round, context.inputs["prepare"], context.seed]
    text = " ".join(map(str, [*known, os.environ["OMP_NUM_THREADS"]]))
    (context.out / "context.txt").write_text(text)


def raises_user_error(context: StageContext) -> None:
    raise UserError("give another")


def raises_disk_full(context: StageContext) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "clip.mp4")


class BadNumber(ValueError):
    pass


def raises_subclass(context: StageContext) -> None:
    raise BadNumber("bad number")


class Unheard(Exception):
    pass


def raises_unheard(context: StageContext) -> None:
    raise Unheard("of")


def is_killed(context: StageContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_terminated(context: StageContext) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def leaves(context: StageContext) -> None:
    sys.exit(0)


def leaves_with_137(context: StageContext) -> None:
    os._exit(137)


def prints_what_torch_prints(context: StageContext) -> None:
    print("failed (exitcode: -9) local_rank: 1 (pid: 7)", file=sys.stderr, flush=True)
    os._exit(1)


def misses_a_peer(context: StageContext) -> None:
    print("  exitcode  : -9 (pid: 7)  (SIGKILL)", file=sys.stderr, flush=True)
    raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")


def fails_beside_a_killed_one(context: StageContext) -> None:
    print("  exitcode  : -9 (pid: 7)  (SIGKILL)", file=sys.stderr, flush=True)
    raise ValueError("loss is nan")


def second_is_killed(context: StageContext) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

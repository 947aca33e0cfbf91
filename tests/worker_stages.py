"""Stage functions that worker processes run in tests/test_launchers.py."""

import errno
import logging
import os
import signal
import sys

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

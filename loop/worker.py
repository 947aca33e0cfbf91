"""One stage in a process of its own: `python -m loop.worker REQUEST.json`; loop/launchers.py starts it.

Standard output carries messages to the parent, one JSON object a line after a mark; what libraries print goes
to standard error. Standard input is the parent's hold: when it closes, this process ends at once.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from loop import distributed
from loop.config import CampaignConfig
from loop.errors import Stopped, UserError
from loop.launchers import MARK, InlineLauncher
from loop.logs import LineFormatter, rank_file
from loop.progress import Progress
from loop.stages import Stage, StageContext
from loop.stopping import stop_on_signals

ORPHANED = 76  # exit code of a worker whose parent is gone
MOST_OF_A_TRACEBACK = (
    3000  # characters; several ranks share the pipe, which keeps no more than 4096 bytes whole
)


class Channel:
    """Messages to the parent, through what was standard output."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        line = MARK + json.dumps(message, default=str) + "\n"
        with self._lock:
            self._pipe.write(line)
            self._pipe.flush()


class ChannelProgress:
    """Progress that the parent shows."""

    def __init__(self, channel: Channel):
        self._channel = channel

    def start(self, total: int, unit: str) -> None:
        self._channel.send(start=[total, unit])

    def advance(self, n: int = 1) -> None:
        self._channel.send(advance=n)

    def done(self) -> None:
        pass  # the parent knows


class NoProgress:
    """Of the ranks beside the first."""

    def start(self, total: int, unit: str) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def done(self) -> None:
        pass


class ChannelHandler(logging.Handler):
    """Log records that the parent writes to the stage's log."""

    def __init__(self, channel: Channel):
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        text = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        kept = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
        times = {"created": record.created, "msecs": record.msecs}
        self._channel.send(log={**kept, **times, "msg": record.getMessage(), "exc_text": text})


def main(path: Path) -> int:
    channel = Channel()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        request = json.loads(path.read_text(encoding="utf-8"))
        config = CampaignConfig.model_validate(request["config"])
        launcher = InlineLauncher(config)  # before torch is imported
        rank = distributed.start() if request["distributed"] else 0
        progress: Progress = ChannelProgress(channel) if rank == 0 else NoProgress()
        log_file = Path(request["log_file"]) if request["log_file"] else None
        with _logging(_handler(channel, rank, log_file)) as log:
            inputs = {key: Path(folder) for key, folder in request["inputs"].items()}
            given = (config, request["round"], inputs, Path(request["out"]), request["seed"])
            context = StageContext(*given, progress, log, request["stage"], log_file)
            if request["distributed"]:
                log.info("%s", distributed.description())
            try:
                with stop_on_signals():
                    launcher.launch(Stage(request["function"], (), ()), context)
            except Exception:
                if rank != 0:  # the campaign tells of one error, which may be another process's
                    log.exception("this process failed")
                raise
            finally:
                if rank == 0:
                    channel.send(devices=launcher.devices)
        if request["distributed"]:
            distributed.end()
    except Exception as error:
        channel.send(error=describe(error))
        return 1
    except Stopped as stop:
        _die_of(signal.Signals[str(stop)])
    if rank == 0:
        channel.send(done=True)
    return 0


def describe(error: Exception) -> dict[str, Any]:
    """An exception as data: names of its classes, what it was made of, and its traceback."""
    args: list[Any] = [str(error)]
    if type(error).__module__ == "builtins" and all(isinstance(a, str | int | float) for a in error.args):
        args = list(error.args)
    if isinstance(error, OSError) and error.filename is not None:
        args = [error.errno, error.strerror, str(error.filename)]
    kinds = ["UserError"] if isinstance(error, UserError) else [k.__name__ for k in type(error).__mro__]
    text = "".join(traceback.format_exception(error))
    return {"kinds": kinds, "args": args, "traceback": text[-MOST_OF_A_TRACEBACK:]}


def _handler(channel: Channel, rank: int, log_file: Path | None) -> logging.Handler:
    """The first process's records go to the parent, those of the others to files of their own."""
    if rank == 0:
        return ChannelHandler(channel)
    if log_file is None:
        return logging.NullHandler()
    handler = logging.FileHandler(rank_file(log_file, rank), encoding="utf-8")
    handler.setFormatter(LineFormatter(rank))
    return handler


@contextlib.contextmanager
def _logging(handler: logging.Handler) -> Iterator[logging.Logger]:
    """As loop.runner sets it up for a stage."""
    root, log = logging.getLogger(), logging.getLogger("retake")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    log.setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    yield log
    logging.captureWarnings(False)
    root.removeHandler(handler)


def _die_of(number: signal.Signals) -> NoReturn:
    """As if the signal had not been caught: the parent sees what ended this process."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    raise AssertionError("a signal with its default action ends the process")


def _end_with_the_parent() -> None:
    """A stage writes every file whole, so it may end anywhere; an orphan would write beside its successor."""
    while os.read(0, 4096):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

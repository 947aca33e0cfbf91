"""`retake status --watch`: looks at a run until its campaign ends, and touches nothing of it."""

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loop.errors import UserError
from loop.status import Status, read_status
from loop.status_text import status_lines, summary_line

EXIT_CODES = {"done": 0, "failed": 1, "stopped": 75, "interrupted": 75}  # of `retake run`
MOST_FAILED_LOOKS = 5  # in a row

Show = Callable[[Status], None]


def watch(root: Path, every: float, as_json: bool = False, console: Console | None = None) -> int:
    """Show the status every `every` seconds until the campaign does not run; returns the exit code.

    A terminal is drawn again; anything else gets a line when something has changed, or with as_json one
    object a line. Raises UserError for a run directory that is gone or stays unreadable.
    """
    console = console or Console()
    if as_json:
        return _follow(root, every, _ChangedLines(lambda status: json.dumps(json.loads(status.as_json()))))
    if not console.is_terminal:
        return _follow(root, every, _ChangedLines(_stamped))
    with Live(console=console, auto_refresh=False) as live:

        def draw(status: Status) -> None:
            live.update(Text("\n".join(status_lines(status, all_rounds=False))), refresh=True)

        return _follow(root, every, draw)


def _follow(root: Path, every: float, show: Show) -> int:
    failed = 0
    while True:
        try:
            status = read_status(root)
        except (OSError, ValueError, KeyError) as error:
            # a look may fall between two steps of the campaign; what stays wrong is told
            failed += 1
            if not (root / "resolved.json").is_file() and failed > 1:
                raise UserError(f"{root} is gone: it has no resolved.json any more") from None
            if failed == MOST_FAILED_LOOKS:
                raise UserError(f"{root} cannot be read: {error}") from error
        else:
            failed = 0
            show(status)
            if status.state != "running":
                return EXIT_CODES[status.state]
        time.sleep(every)


class _ChangedLines:
    """Prints a line where the state, the stage, its phase or a tenth of the phase has changed."""

    def __init__(self, write: Callable[[Status], str]):
        self._write = write
        self._last: object = None

    def __call__(self, status: Status) -> None:
        now = status.running
        tenth = now and (now.round, now.stage, now.unit, 10 * now.done // max(now.total, 1))
        seen = (status.state, status.rounds_done, tenth, [s.state for s in status.stages])
        if seen != self._last:
            print(self._write(status), flush=True)
        self._last = seen


def _stamped(status: Status) -> str:
    return f"{datetime.now():%Y-%m-%d %H:%M:%S} {summary_line(status)}"

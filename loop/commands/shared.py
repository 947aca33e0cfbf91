"""What several commands share: arguments, exit codes, names of folders."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from loop.errors import JudgeFailed, StageFailed, UserError

FAILED, USER_ERROR, STOPPED, INTERRUPTED = 1, 2, 75, 130
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or a name under runs/.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Rounds = Annotated[
    list[int] | None, typer.Option("--round", min=0, help="Only this round; repeatable. 0 is the base.")
]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="Only this metric; repeatable.")]
Set = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Override a key; repeatable.")]


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Expected ends become a message and an exit code; anything else is a bug and keeps its traceback."""
    try:
        yield
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USER_ERROR) from None
    except (StageFailed, JudgeFailed) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from None
    except OSError as error:  # outside of stages only the run directory or --out is written
        if error.errno not in _DISK_ERRORS:
            raise
        typer.echo(f"error: {error}; free space, or choose a --dir or --out that can be written", err=True)
        raise typer.Exit(USER_ERROR) from None


def beside(run: Path, suffix: str) -> Path:
    """A folder beside the run's, which may have been given as "." or ".."."""
    named = run if run.name not in ("", "..") else run.resolve()
    return named.with_name(named.name + suffix)

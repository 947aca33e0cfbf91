"""The command `retake`. Imports nothing heavy: `retake --help` answers at once."""

from collections.abc import Callable

import typer

from loop.commands import campaigns, judges, reading

app = typer.Typer(
    help="Improves a video generator and its judge together, round after round.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {  # in the order of `retake --help`
    "run": campaigns.run,
    "status": reading.status,
    "curves": reading.curves,
    "compare": reading.compare,
    "report": reading.report,
    "verify": campaigns.verify,
    "prune": campaigns.prune,
    "branch": campaigns.branch,
    "export-vbench": reading.export_vbench,
    "judge": judges.judge,
    "judge-bench": judges.judge_bench,
}
for name, function in COMMANDS.items():
    app.command(name)(function)


def main() -> None:
    app()


if __name__ == "__main__":
    main()

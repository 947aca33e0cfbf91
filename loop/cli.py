"""The command `retake`. Imports nothing heavy: `retake --help` answers at once."""

import contextlib
import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.errors import JudgeFailed, StageFailed, Stopped, UserError

if TYPE_CHECKING:
    from loop.config_file import LoadedConfig

FAILED, USER_ERROR, STOPPED, INTERRUPTED = 1, 2, 75, 130
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
)

app = typer.Typer(
    help="Improves a video generator and its judge together, round after round.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or a name under runs/.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Rounds = Annotated[
    list[int] | None, typer.Option("--round", min=0, help="Only this round; repeatable. 0 is the base.")
]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="Only this metric; repeatable.")]
Set = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Override a key; repeatable.")]
JudgeOf = Annotated[
    str,
    typer.Option(
        metavar="CONFIG",
        help="A YAML file, a shipped config's or judge's name, or a run directory: its judge in force.",
    ),
]
Ballots = Annotated[
    int | None, typer.Option(min=1, help="Votes in each order. Default: the config's label.voting.")
]
Whole = Annotated[
    bool, typer.Option("--whole", help="Show whole clips, not the first data.clip.num_frames frames.")
]


@app.command()
def run(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")
    ],
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Rounds in all; a larger number extends a run.")
    ] = None,
    dir: Annotated[Path | None, typer.Option(help="The run directory. Default: runs/NAME.")] = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Run a campaign. The same command resumes it after Ctrl-C, a crash or a power cut."""
    from loop.config_file import load_config

    with _exit_codes():
        overrides = list(set or []) + ([f"rounds={rounds}"] if rounds is not None else [])
        loaded = load_config(config, overrides)
        root = dir or Path("runs") / loaded.config.name
        from loop.models import check_models

        check_models(loaded.config)
        from loop.trackers import check_trackers

        check_trackers(loaded.config.track)
        if dry_run:
            typer.echo(loaded.config.model_dump_json(indent=2))
            if loaded.config.gate.enabled:
                from loop.power import plan_of_config

                typer.echo(plan_of_config(loaded.config), err=True)
            from loop.forecast import told_before
            from loop.store import Store

            if disk := told_before(Store(root), loaded.config):
                typer.echo(disk, err=True)
            typer.echo(
                f"the config is valid; no clip and no weights were read; the run directory would be {root}",
                err=True,
            )
            return
        _run(loaded, root, "the same command")


@app.command()
def status(
    run: Run,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until the campaign ends; exit as `retake run` does.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks, with --watch.")] = 2.0,
) -> None:
    """Show where a run stands, how far its stage is, and how long it may still take."""
    from loop.status import find_run, read_status
    from loop.status_text import status_lines

    with _exit_codes():
        folder = find_run(run)
        if watch:
            from loop.watch import watch as watch_run

            try:
                raise typer.Exit(watch_run(folder, every, as_json))
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None
        report = read_status(folder)
        typer.echo(report.as_json() if as_json else "\n".join(status_lines(report)))


@app.command()
def curves(
    run: Run,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_parquet: Annotated[bool, typer.Option("--parquet", help="Write Parquet; needs --out.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write a file: .csv, .json or .parquet, unless an option says which.")
    ] = None,
    round: Rounds = None,
    metric: Metrics = None,
    categories: Annotated[
        bool, typer.Option("--categories", help="Also a row for each category of prompts.")
    ] = False,
) -> None:
    """Print one row per round and metric, with its interval."""
    from loop.curves import COLUMNS, line_of, read_curves, schema, select
    from loop.status import find_run
    from loop.table_files import choose_format, to_csv, to_json, write_parquet, write_text

    with _exit_codes():
        form = choose_format({"csv": as_csv, "json": as_json, "parquet": as_parquet}, out)
        rows = select(read_curves(find_run(run), None if categories else ""), round or [], metric or [])
        if form == "parquet":
            if out is None:
                raise UserError("--parquet is not for a terminal; give --out FILE")
            write_parquet(out, rows, schema())
        elif form is None:
            for row in rows:
                typer.echo(line_of(row))
        else:
            text = to_json(rows) + "\n" if form == "json" else to_csv(rows, (*COLUMNS, "kept"))
            if out is None:
                typer.echo(text, nl=False)
            else:
                write_text(out, text)


@app.command()
def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN…", help="Run directories, or names under runs/.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RUN,RUN", help="Runs that count as one, by their mean; repeatable."),
    ] = None,
    round: Rounds = None,
    metric: Metrics = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page that opens offline.")] = None,
) -> None:
    """Show the curves of several runs side by side, and how far each is from the first one."""
    from loop.table_files import choose_format, to_csv, to_json, write_text

    with _exit_codes():
        form = choose_format({"csv": as_csv, "json": as_json}, None)
        from loop.compare import arms_of
        from loop.compare import compare as compare_runs
        from loop.compare_text import COLUMNS, flat_rows, table
        from loop.compare_text import as_json as to_plain

        found = compare_runs(arms_of(runs or [], group or []), metric or [], round or [])
        if html is not None:
            from loop.report.comparison import page

            write_text(html, page(found))
        if form == "json":
            typer.echo(to_json(to_plain(found)))
        elif form == "csv":
            typer.echo(to_csv(flat_rows(found), COLUMNS), nl=False)
            for note in found.notes:
                typer.echo(f"note: {note}", err=True)
        else:
            typer.echo("\n".join(table(found)))
        if html is not None:
            typer.echo(f"open {html}", err=True)


@app.command()
def report(
    run: Run,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            min=0, help="What an hour of all machines costs: the report then shows what stages cost."
        ),
    ] = None,
) -> None:
    """Write report.html: one file that opens offline."""
    from loop.status import find_run

    with _exit_codes():
        folder = find_run(run)
        from loop.report import write_report

        typer.echo(str(write_report(folder, price_per_hour=price_per_hour)))


@app.command()
def verify(run: Run, as_json: AsJson = False) -> None:
    """Hash every committed file and name each damaged one; exit 1 if there is any."""
    from loop.status import find_run
    from loop.verify import summary
    from loop.verify import verify as verify_run

    with _exit_codes():
        found = verify_run(find_run(run))
    if as_json:
        typer.echo(json.dumps(vars(found), indent=2))
    else:
        for line in found.damage:
            typer.echo(line)
        typer.echo(summary(found))
    if found.damage:
        raise typer.Exit(FAILED)


@app.command()
def prune(
    run: Run,
    keep_last: Annotated[
        int, typer.Option(min=0, metavar="N", help="Free nothing of the last N rounds.")
    ] = 1,
    yes: Annotated[bool, typer.Option("--yes", help="Free them without asking.")] = False,
) -> None:
    """List the clips and weights that nothing reads any more, and free them once you say yes."""
    from loop.prune import prune as prune_run
    from loop.prune import what_can_go, write_out
    from loop.status import find_run
    from loop.store import Store

    with _exit_codes():
        store = Store(find_run(run))
        store.lock()  # a campaign under way may yet need anything
        try:
            going = what_can_go(store, keep_last)
            typer.echo("\n".join(write_out(going)))
            if not going:
                return
            if not yes and not _on_a_terminal():
                typer.echo("nothing was freed; --yes frees them", err=True)
                return
            if yes or typer.confirm("free them?"):
                prune_run(store, going)
                typer.echo("freed")
        finally:
            store.unlock()


@app.command()
def branch(
    run: Run,
    start: Annotated[int, typer.Option("--from", min=0, help="The last round that both runs share.")],
    dir: Annotated[Path | None, typer.Option(help="The new run. Default: RUN-from-ROUND beside RUN.")] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="Rounds in all, shared ones included.")] = None,
    set: Set = None,
) -> None:
    """Start a campaign that shares a run's first rounds and goes on with other settings."""
    from loop.branch import branch as branch_run
    from loop.status import find_run

    with _exit_codes():
        source = find_run(run)
        root = dir or _beside(source, f"-from-{start}")
        overrides = list(set or []) + ([f"rounds={rounds}"] if rounds is not None else [])
        loaded = branch_run(source, start, root, overrides)
        typer.echo(f"{root} begins with rounds 0 to {start} of {source}", err=True)
        _run(loaded, root, f"retake run {root / 'resolved.json'} --dir {root}")


@app.command("export-vbench")
def export_vbench(
    run: Run,
    round: Annotated[int, typer.Argument(metavar="ROUND", min=0, help="0 is the base.")],
    out: Annotated[Path | None, typer.Option(help="Default: RUN-round-ROUND-vbench beside RUN.")] = None,
    full_info: Annotated[
        Path | None,
        typer.Option(help="VBench's VBench_full_info.json: says which of its own prompts are there."),
    ] = None,
) -> None:
    """Lay out a round's evaluated clips so that the official VBench tool runs on them."""
    from loop.export_vbench import commands, remarks
    from loop.export_vbench import export_vbench as export
    from loop.status import find_run

    with _exit_codes():
        source = find_run(run)
        folder = out or _beside(source, f"-round-{round}-vbench")
        found = export(source, round, folder, full_info)
        for line in remarks(found):
            typer.echo(line, err=True)
        typer.echo("\n".join(commands(found)))


@app.command("judge")
def judge_(
    first: Annotated[Path, typer.Argument(metavar="A", help="A video file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    prompt: Annotated[str, typer.Option(help="The text that both were made for.")],
    judge: JudgeOf = "quickstart",
    set: Set = None,
    ballots: Ballots = None,
    whole: Whole = False,
    as_json: AsJson = False,
) -> None:
    """Ask a judge which of two clips is better: blind, and in both orders."""
    with _exit_codes():
        from loop.chosen_judge import choose_judge, to_json
        from loop.judge_pair import judge_pair, write_out

        found = judge_pair(choose_judge(judge, set or []), first, second, prompt, ballots, whole)
        typer.echo(to_json(found) if as_json else "\n".join(write_out(found)))


@app.command("judge-bench")
def judge_bench(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .csv, .jsonl or .parquet of clips that people compared.")
    ],
    judge: JudgeOf = "quickstart",
    set: Set = None,
    ballots: Ballots = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure on the first LIMIT pairs.")] = None,
    tie_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=0.5, help="Call it a tie where the score is this near to 0.5."),
    ] = None,
    dimension: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=NAME", help="Measure a column in a dimension of the judge; repeatable."),
    ] = None,
    whole: Whole = False,
    out: Annotated[
        Path | None, typer.Option(help="Write votes and verdicts here; the same command resumes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often a judge agrees with people."""
    with _exit_codes():
        columns = dict(_pair(text) for text in dimension or [])
        from loop.chosen_judge import choose_judge, to_json
        from loop.judge_bench import run_bench, write_out
        from loop.progress import Display
        from loop.stopping import stop_on_signals

        chosen = choose_judge(judge, set or [])
        display = Display(0)
        try:
            with stop_on_signals():
                report = run_bench(
                    file,
                    chosen,
                    ballots=ballots,
                    limit=limit,
                    tie_threshold=tie_threshold,
                    dimensions=columns,
                    whole=whole,
                    out=out,
                    progress=display.task("judge-bench"),
                )
        except JudgeFailed as error:
            raise JudgeFailed(f"{error}" + (f"\nthe same command resumes {out}" if out else "")) from error
        except Stopped as stop:
            remedy = (
                f"the same command resumes {out}" if out else "nothing was kept; --out DIR makes it resume"
            )
            typer.echo(f"stopped by {stop}; {remedy}", err=True)
            raise typer.Exit(STOPPED) from None
        finally:
            display.close()
        typer.echo(to_json(report) if as_json else "\n".join(write_out(report)))


def _run(loaded: "LoadedConfig", root: Path, how_to_resume: str) -> None:
    from loop.campaign import run_campaign
    from loop.store import Store

    try:
        report = run_campaign(loaded, Store(root))
    except Stopped as stop:
        typer.echo(f"stopped by {stop}; {how_to_resume} resumes {root}", err=True)
        raise typer.Exit(STOPPED) from None
    typer.echo(f"done: open {report}")


def _beside(run: Path, suffix: str) -> Path:
    """A folder beside the run's, which may have been given as "." or ".."."""
    named = run if run.name not in ("", "..") else run.resolve()
    return named.with_name(named.name + suffix)


def _on_a_terminal() -> bool:
    return sys.stdin.isatty()


def _pair(text: str) -> tuple[str, str]:
    column, equals, name = text.partition("=")
    if not (column and equals and name):
        raise UserError(f"--dimension {text}: expected COLUMN=NAME, as in --dimension VQ=visual_quality")
    return column, name


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
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


def main() -> None:
    app()


if __name__ == "__main__":
    main()

"""Commands that read a run: status, curves, compare, report, export-vbench."""

from pathlib import Path
from typing import Annotated

import typer

from loop.commands.shared import INTERRUPTED, AsCsv, AsJson, Metrics, Rounds, Run, beside, exit_codes
from loop.errors import UserError


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

    with exit_codes():
        folder = find_run(run)
        if watch:
            from loop.watch import watch as watch_run

            try:
                raise typer.Exit(watch_run(folder, every, as_json))
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None
        report = read_status(folder)
        typer.echo(report.as_json() if as_json else "\n".join(status_lines(report)))


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

    with exit_codes():
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

    with exit_codes():
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

    with exit_codes():
        folder = find_run(run)
        from loop.report import write_report

        typer.echo(str(write_report(folder, price_per_hour=price_per_hour)))


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

    with exit_codes():
        source = find_run(run)
        folder = out or beside(source, f"-round-{round}-vbench")
        found = export(source, round, folder, full_info)
        for line in remarks(found):
            typer.echo(line, err=True)
        typer.echo("\n".join(commands(found)))

"""Commands that ask a judge: judge, judge-bench."""

from pathlib import Path
from typing import Annotated

import typer

from loop.commands.shared import STOPPED, AsJson, Set, exit_codes
from loop.errors import JudgeFailed, Stopped, UserError

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


def judge(
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
    with exit_codes():
        from loop.chosen_judge import choose_judge, to_json
        from loop.judge_pair import judge_pair, write_out

        found = judge_pair(choose_judge(judge, set or []), first, second, prompt, ballots, whole)
        typer.echo(to_json(found) if as_json else "\n".join(write_out(found)))


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
    with exit_codes():
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


def _pair(text: str) -> tuple[str, str]:
    column, equals, name = text.partition("=")
    if not (column and equals and name):
        raise UserError(f"--dimension {text}: expected COLUMN=NAME, as in --dimension VQ=visual_quality")
    return column, name

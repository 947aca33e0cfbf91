"""Commands that run a campaign or change what is on the disk: run, branch, prune, verify."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.commands.shared import FAILED, STOPPED, AsJson, Run, Set, beside, exit_codes
from loop.errors import Stopped

if TYPE_CHECKING:
    from loop.config_file import LoadedConfig


def run(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")
    ],
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Rounds in all; a larger number extends a run.")
    ] = None,
    dir: Annotated[Path | None, typer.Option(help="The run directory. Default: runs/NAME.")] = None,
    set: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Run a campaign. The same command resumes it after Ctrl-C, a crash or a power cut."""
    from loop.config_file import load_config

    with exit_codes():
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

    with exit_codes():
        source = find_run(run)
        root = dir or beside(source, f"-from-{start}")
        overrides = list(set or []) + ([f"rounds={rounds}"] if rounds is not None else [])
        loaded = branch_run(source, start, root, overrides)
        typer.echo(f"{root} begins with rounds 0 to {start} of {source}", err=True)
        _run(loaded, root, f"retake run {root / 'resolved.json'} --dir {root}")


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

    with exit_codes():
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


def verify(run: Run, as_json: AsJson = False) -> None:
    """Hash every committed file and name each damaged one; exit 1 if there is any."""
    from loop.status import find_run
    from loop.verify import summary
    from loop.verify import verify as verify_run

    with exit_codes():
        found = verify_run(find_run(run))
    if as_json:
        typer.echo(json.dumps(vars(found), indent=2))
    else:
        for line in found.damage:
            typer.echo(line)
        typer.echo(summary(found))
    if found.damage:
        raise typer.Exit(FAILED)


def _run(loaded: "LoadedConfig", root: Path, how_to_resume: str) -> None:
    from loop.campaign import run_campaign
    from loop.store import Store

    try:
        report = run_campaign(loaded, Store(root))
    except Stopped as stop:
        typer.echo(f"stopped by {stop}; {how_to_resume} resumes {root}", err=True)
        raise typer.Exit(STOPPED) from None
    typer.echo(f"done: open {report}")


def _on_a_terminal() -> bool:
    return sys.stdin.isatty()

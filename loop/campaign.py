"""A campaign: the stages of each round in order, and which judge and generator are in force between them."""

import contextlib
import errno
import importlib
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from loop.config_file import LoadedConfig
from loop.decision import accepts
from loop.errors import StageFailed, Stopped, UserError
from loop.git_state import code_state, config_state
from loop.past import Past, announce_power, out_of_patience
from loop.progress import Display
from loop.runner import StageRunner
from loop.stages import STAGES, Stage
from loop.stopping import stop_on_signals
from loop.store import NO_SPACE, Store, write_atomically
from loop.tracking import tracked

WriteReport = Callable[[Path], Path]


def run_campaign(
    loaded: LoadedConfig,
    store: Store,
    stages: Mapping[str, Stage] = STAGES,
    write_report: WriteReport | None = None,
    display: Display | None = None,
) -> Path:
    """Run or resume the campaign in `store`, and return its report.

    Raises UserError (nothing was damaged), StageFailed (its log is named) or Stopped (SIGINT, SIGTERM); after
    each of them the same call resumes.
    """
    display = display or Display(loaded.config.rounds)
    runner = StageRunner(loaded.config, store, stages, display)
    begun = False
    with stop_on_signals():
        store.lock()
        try:
            runner.check_existing()
            write_atomically(store.root / "campaign.yaml", loaded.text)
            write_atomically(store.root / "resolved.json", loaded.config.model_dump_json(indent=2) + "\n")
            git = {"code": code_state(), "config": config_state(loaded.file)}
            with tracked(loaded.config, store.root, display):
                store.event("campaign_started", rounds=loaded.config.rounds, pid=os.getpid(), git=git)
                begun = True
                run_rounds(runner)
                report = _report(store, write_report)
            store.event("campaign_finished", rounds=loaded.config.rounds)
            return report
        except BaseException as error:
            _record_end(store, error, begun)
            raise
        finally:
            display.close()
            store.unlock()


def run_rounds(runner: StageRunner) -> None:
    """train_judge → judge gate → sample → label → pair → update → evaluate → gate, round after round."""
    run = runner.run
    prepared = run(0, "prepare")
    base = run(0, "evaluate", prepare=prepared)
    runner.display.end_round(0, base, None)

    judge: Path | None = None  # in force; None = the config's model
    generator: Path | None = None
    previous = base  # evaluation of the generator in force
    label: Path | None = None
    sample: Path | None = None
    past = Past(runner.config)
    announce_power(runner, prepared)

    for k in range(1, runner.config.rounds + 1):
        runner.begin_round(k)
        trained = run(k, "train_judge", prepare=prepared, judge_parent=judge, label=label, sample=sample)
        judged = run(
            k,
            "judge_gate",
            prepare=prepared,
            train_judge=trained,
            judge_parent=judge,
            earlier=past.judge_gate,
        )
        if accepts(judged, "use"):
            judge = trained

        sample = run(k, "sample", prepare=prepared, generator=generator)
        label = run(k, "label", prepare=prepared, sample=sample, judge_gate=judged, judge=judge)
        pair = run(k, "pair", prepare=prepared, sample=sample, label=label)
        update = run(
            k,
            "update",
            prepare=prepared,
            sample=sample,
            pair=pair,
            generator=generator,
            earlier_gate=past.gate_of_update,
        )
        evaluate = run(
            k,
            "evaluate",
            prepare=prepared,
            generator=update,
            judge=judge,
            previous=previous,
            base=base,
            sample=sample,
            pair=pair,
        )
        gate = run(
            k,
            "gate",
            prepare=prepared,
            update=update,
            generator=generator,
            **past.watched(judge, judged, pair),
        )
        kept = accepts(gate, "keep")
        if kept:
            generator, previous = update, evaluate
        runner.display.end_round(k, evaluate, gate)
        past.end_round(kept, judged, pair, gate)
        if out_of_patience(runner, k, past.rounds_without_promotion):
            break


def _report(store: Store, write_report: WriteReport | None) -> Path:
    """report.html is derived: it is written again at each end, and a failure leaves the campaign whole."""
    if write_report is None:
        write_report = importlib.import_module("loop.report").write_report
    try:
        return write_report(store.root)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (*NO_SPACE, errno.EROFS):
            raise  # as outside of all stages
        log = store.root / "logs" / "report.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(traceback.format_exc(), encoding="utf-8")
        raise StageFailed(f"all stages are committed, but the report failed: {error}", log) from error


def _record_end(store: Store, error: BaseException, begun: bool) -> None:
    event = "campaign_stopped" if isinstance(error, Stopped) else "campaign_failed"
    if not begun:
        event = "launch_refused"  # the run stands where it stood before
    with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
        store.event(event, reason=str(error))

"""A campaign: the stages of each round in order, and which judge and generator are in force between them."""

import contextlib
import importlib
import json
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from loop.config_file import LoadedConfig
from loop.errors import StageFailed, Stopped, UserError
from loop.git_state import code_state, config_state
from loop.progress import Display
from loop.runner import StageRunner
from loop.stages import STAGES, Stage
from loop.store import Store, write_atomically

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
    with stop_on_signals():
        store.lock()
        try:
            runner.check_existing()
            write_atomically(store.root / "campaign.yaml", loaded.text)
            write_atomically(store.root / "resolved.json", loaded.config.model_dump_json(indent=2) + "\n")
            git = {"code": code_state(), "config": config_state(loaded.file)}
            store.event("campaign_started", rounds=loaded.config.rounds, git=git)
            run_rounds(runner)
            report = _report(store, write_report)
            store.event("campaign_finished", rounds=loaded.config.rounds)
            return report
        except BaseException as error:
            _record_end(store, error)
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

    for k in range(1, runner.config.rounds + 1):
        trained = run(k, "train_judge", prepare=prepared, judge_parent=judge, label=label, sample=sample)
        judged = run(k, "judge_gate", prepare=prepared, train_judge=trained, judge_parent=judge)
        if _accepts(judged, "use"):
            judge = trained

        sample = run(k, "sample", prepare=prepared, generator=generator)
        label = run(k, "label", prepare=prepared, sample=sample, judge_gate=judged, judge=judge)
        pair = run(k, "pair", prepare=prepared, sample=sample, label=label)
        update = run(k, "update", prepare=prepared, sample=sample, pair=pair, generator=generator)
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
        gate = run(k, "gate", prepare=prepared, update=update, generator=generator)
        if _accepts(gate, "keep"):
            generator, previous = update, evaluate
        runner.display.end_round(k, evaluate, gate)


def _accepts(gate: Path, key: str) -> bool:
    return bool(json.loads((gate / "gate.json").read_text(encoding="utf-8"))[key])


def _report(store: Store, write_report: WriteReport | None) -> Path:
    """report.html is derived: it is written again at each end, and a failure leaves the campaign whole."""
    if write_report is None:
        write_report = importlib.import_module("loop.report").write_report
    try:
        return write_report(store.root)
    except UserError:
        raise
    except Exception as error:
        log = store.root / "logs" / "report.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(traceback.format_exc(), encoding="utf-8")
        raise StageFailed(f"all stages are committed, but the report failed: {error}", log) from error


def _record_end(store: Store, error: BaseException) -> None:
    event = "campaign_stopped" if isinstance(error, Stopped) else "campaign_failed"
    with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
        store.event(event, reason=str(error))


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped where the program is; work directories stay for the resume."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

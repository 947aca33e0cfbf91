"""Where a run stands, read from its directory without touching it."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loop.decision import accepts, read_decision
from loop.device_hours import device_hours
from loop.errors import UserError
from loop.eta import Outlook, Running, durations, outlook
from loop.past import ended_by_patience
from loop.progress_file import FILE, read_progress
from loop.pruned import Pruned, pruned_in
from loop.stages import plan
from loop.store import Store, read_manifest

State = Literal["running", "done", "stopped", "failed", "interrupted"]


@dataclass(frozen=True)
class StageStatus:
    """seconds, devices: of the attempt that committed the stage; None where the event log does not say."""

    round: int
    stage: str
    state: Literal["committed", "running", "failed", "pending"]
    seconds: float | None
    devices: int | None = None


@dataclass(frozen=True)
class RunningStage:
    """The stage that runs now.

    seconds: since this attempt at it began. unit, done, total: of its present phase; "" and 0 of 0 where it
    counts nothing. seconds_left: of that phase, None before anything of it is done. log: relative to the run.
    """

    round: int
    stage: str
    seconds: float
    unit: str
    done: int
    total: int
    seconds_left: float | None
    log: str


@dataclass(frozen=True)
class Status:
    """generator_in_force, judge_in_force: the round they come from; 0 = the base and the configured judge.

    seconds_left: of the whole campaign while it runs, None where it is not known; seconds_left_rests_on says
    in words on what it rests (loop/eta.py). device_hours: of all attempts so far, None where none says.
    """

    name: str
    directory: str
    state: State
    rounds: int
    rounds_done: int
    generator_in_force: int
    judge_in_force: int
    reason: str
    stages: list[StageStatus]
    alarms: list[dict[str, Any]]  # of all gates: round, name, reason, value, threshold
    running: RunningStage | None
    seconds_left: float | None
    seconds_left_rests_on: str
    pruned: Pruned | None = None  # what `retake prune` has freed
    device_hours: float | None = None

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def find_run(run: str) -> Path:
    """The run directory given as a path, or as a name under runs/. Raises UserError if it is no run."""
    for folder in (Path(run), Path("runs") / run):
        if (folder / "resolved.json").is_file():
            return folder
    for folder in (Path(run), Path("runs") / run):
        if (folder / "lock").is_file():
            raise UserError(
                f"{folder}: its launch has not written its config (resolved.json): no stage has begun"
            )
    if Path(run).is_dir():
        raise UserError(f"{run} is not a run directory: it has no resolved.json")
    known = sorted(path.parent.name for path in Path("runs").glob("*/resolved.json"))
    raise UserError(f"there is no run {run}; runs here: {', '.join(known) or 'none'}")


def read_resolved(root: Path) -> dict[str, Any]:
    """The run's config as plain data. Raises UserError if the file is gone or damaged."""
    path = root / "resolved.json"
    try:
        resolved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        resolved = None
    if not isinstance(resolved, dict) or not (
        isinstance(resolved.get("name"), str) and isinstance(resolved.get("rounds"), int)
    ):
        raise UserError(f"{path} is damaged; the command that runs the campaign writes it anew")
    return resolved


@dataclass(frozen=True)
class JudgeInForce:
    """trained: the train_judge artefact, None for the configured judge. calibrators: its, if any."""

    trained: Path | None
    calibrators: Path | None


def judge_in_force(root: Path) -> JudgeInForce:
    """The judge that the run in `root` would ask next, and the file that calibrates it."""
    store = Store(root)
    rounds = read_resolved(root)["rounds"]
    round = _in_force(store, rounds, "judge_gate", "use")
    # the newest gate calibrates the judge in force, whether it is the gate's candidate or its parent
    gates = [gate for k in range(rounds, 0, -1) if read_manifest(gate := store.artefact(k, "judge_gate"))]
    return JudgeInForce(
        store.artefact(round, "train_judge") if round else None,
        gates[0] / "calibrators.json" if gates else None,
    )


def read_status(root: Path) -> Status:
    store = Store(root)
    resolved = read_resolved(root)
    events = store.events()
    locked = store.is_locked()
    owner = store.owner()
    launched = _events_of(owner, events)
    stages = [_stage(store, events, launched if locked else [], *step) for step in plan(resolved["rounds"])]
    running = next((_running(root, events, s) for s in stages if s.state == "running"), None)
    last_round = ended_by_patience(events)
    left = _outlook(events, [s for s in stages if last_round is None or s.round <= last_round], running)
    ends = [event for event in events if event["event"].startswith("campaign_")]
    last: dict[str, Any] = ends[-1] if ends else {}
    ended = bool(launched) and last["event"] != "campaign_started"
    died = owner != "" and not locked and not ended
    state = _state(last.get("event"), locked, stages, last_round)
    gates = [stage.round for stage in stages if stage.stage == "gate" and stage.state == "committed"]
    return Status(
        name=resolved["name"],
        directory=str(root),
        state="interrupted" if died else state,
        rounds=resolved["rounds"],
        rounds_done=max(gates, default=0),
        generator_in_force=_in_force(store, resolved["rounds"], "gate", "keep"),
        judge_in_force=_in_force(store, resolved["rounds"], "judge_gate", "use"),
        reason="" if locked or died else _why_ended(events) or last.get("reason", ""),
        stages=stages,
        alarms=[{"round": round} | alarm for round in gates for alarm in _alarms(store, round)],
        running=running,
        seconds_left=left.seconds_left,
        seconds_left_rests_on=left.rests_on,
        pruned=pruned_in(root),
        device_hours=sum(spent.values()) if (spent := device_hours(events)) else None,
    )


def _running(root: Path, events: list[dict[str, Any]], stage: StageStatus) -> RunningStage:
    """What the last event of the stage and the file beside its log say; another stage's file says nothing."""
    begun = next(e for e in reversed(events) if e["event"] == "stage_started")
    now = time.time()
    found = read_progress((root / begun["log"]).with_name(FILE))
    if found is None or (found.round, found.stage) != (stage.round, stage.stage):
        seconds = max(now - begun["time"], 0.0)
        return RunningStage(stage.round, stage.stage, seconds, "", 0, 0, None, begun["log"])
    seconds = found.seconds + found.age(now)
    phase = (found.unit, found.done, found.total, found.seconds_left(now))
    return RunningStage(stage.round, stage.stage, seconds, *phase, begun["log"])


def _outlook(
    events: list[dict[str, Any]], stages: list[StageStatus], running: RunningStage | None
) -> Outlook:
    pending = [(stage.round, stage.stage) for stage in stages if stage.state != "committed"]
    now = None
    if running is not None:
        now = Running((running.round, running.stage), running.seconds, running.seconds_left)
    return outlook(pending, durations(events), now)


def _alarms(store: Store, round: int) -> list[dict[str, Any]]:
    return read_decision(store.artefact(round, "gate")).get("alarms", [])


def _why_ended(events: list[dict[str, Any]]) -> str:
    round = ended_by_patience(events)
    return "" if round is None else f"out of patience after round {round}: no promotion; raise patience"


def _events_of(process: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the process has done so far; nothing as long as it looks through what an earlier one left."""
    starts = [i for i, event in enumerate(events) if event["event"] == "campaign_started"]
    mine = starts and str(events[starts[-1]].get("pid")) == process
    return events[starts[-1] :] if mine else []


def _stage(
    store: Store, events: list[dict[str, Any]], launched: list[dict[str, Any]], round: int, name: str
) -> StageStatus:
    """launched: the events of the process that has the run now."""

    def of_stage(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [event for event in events if event.get("round") == round and event.get("stage") == name]

    of = of_stage(events)
    if read_manifest(store.artefact(round, name)) is not None:
        commits = [event for event in of if event["event"] == "stage_committed"]
        last = commits[-1] if commits else {}
        return StageStatus(round, name, "committed", last.get("seconds"), last.get("devices"))
    now = of_stage(launched)
    if now and now[-1]["event"] == "stage_started":
        return StageStatus(round, name, "running", None)
    failed = of and of[-1]["event"] == "stage_failed"
    return StageStatus(round, name, "failed" if failed else "pending", None)


def _state(last: str | None, running: bool, stages: list[StageStatus], ended: int | None) -> State:
    """Without a process that died: that is seen by the lock, which is all that such a process leaves."""
    if running:
        return "running"
    endings: dict[str | None, State] = {"campaign_stopped": "stopped", "campaign_failed": "failed"}
    if last in endings:
        return endings[last]
    due = (stage for stage in stages if ended is None or stage.round <= ended)
    return "done" if all(stage.state == "committed" for stage in due) else "interrupted"


def _in_force(store: Store, rounds: int, stage: str, key: str) -> int:
    for round in range(rounds, 0, -1):
        gate = store.artefact(round, stage)
        if read_manifest(gate) is not None and accepts(gate, key):
            return round
    return 0

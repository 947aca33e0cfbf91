"""How long a campaign still takes, judged by how long its own stages have taken. Nothing is guessed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loop.stages import EVERY_ROUND

Step = tuple[int, str]  # round, stage


@dataclass(frozen=True)
class Outlook:
    """seconds_left: of the whole campaign, None where nothing is known; rests_on: in words, on what."""

    seconds_left: float | None
    rests_on: str


@dataclass(frozen=True)
class Running:
    """seconds: that the stage has taken; seconds_left: of its present phase alone, if that is known."""

    step: Step
    seconds: float
    seconds_left: float | None


def durations(events: Iterable[Mapping[str, Any]]) -> dict[Step, float]:
    """Seconds of every stage that this run has committed, with the attempts that were cut short before.

    An attempt that was killed has left no event of its end and counts nothing.
    """
    spent: dict[Step, float] = {}
    committed: dict[Step, float] = {}
    for event in events:
        if "seconds" not in event:
            continue
        step = (event["round"], event["stage"])
        spent[step] = spent.get(step, 0.0) + event["seconds"]
        if event["event"] == "stage_committed":
            committed[step] = spent.pop(step)
    return committed


def outlook(pending: Sequence[Step], taken: Mapping[Step, float], running: Running | None = None) -> Outlook:
    """The time that `pending` stages need if each takes as long as when it last ran, in round 1 or later.

    taken: as from `durations`. running: the first of `pending`, if it runs now. Round 0 is no measure for
    later ones: it compares nothing.
    """
    if not pending:
        return Outlook(0.0, "every stage is committed")
    last = {
        stage: max((k for k, name in taken if name == stage and k > 0), default=0) for stage in EVERY_ROUND
    }
    if not all(last.get(stage) for _, stage in pending):
        return Outlook(None, "not known before every stage of a round has been timed once in this run")
    seconds = 0.0
    for step in pending:
        needs = taken[(last[step[1]], step[1])]
        if running is not None and running.step == step:
            needs = max(needs - running.seconds, running.seconds_left or 0.0)
        seconds += needs
    rounds = sorted({last[stage] for _, stage in pending})
    named = f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]}"
    return Outlook(seconds, f"each stage taking as long as it last did, in {named}")

"""Device-hours: the accelerators that a stage's processes had, times the hours that it took.

They stand in the event log alone, so that no artefact and no fingerprint depends on the machine. Accelerators
of a served judge are not among them: it is not our process.
"""

from collections.abc import Iterable, Mapping
from typing import Any

ENDS = ("stage_committed", "stage_failed", "stage_stopped")


def hours_of(event: Mapping[str, Any]) -> float | None:
    """Of one ended attempt at a stage; 0 on a CPU, None where the event does not say, as in older runs."""
    if event["event"] not in ENDS or event.get("devices") is None:
        return None
    return event["devices"] * event["seconds"] / 3600


def device_hours(events: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    """By round and stage, over all attempts that say how many devices they had."""
    spent: dict[tuple[int, str], float] = {}
    for event in events:
        hours = hours_of(event)
        if hours is not None:
            step = (event["round"], event["stage"])
            spent[step] = spent.get(step, 0.0) + hours
    return spent

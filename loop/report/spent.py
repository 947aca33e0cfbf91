"""The time section: wall time per stage, what was made and asked for it, and money only at a given price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from loop.device_hours import ENDS, device_hours, hours_of
from loop.report import tables
from loop.report.charts import number
from loop.report.collect import Run, is_number
from loop.report.markup import Html, element, join
from loop.stages import STAGES

PerRound = dict[str, dict[int, float]]


def spent(run: Run, price_per_hour: float | None = None) -> Html | None:
    """None while no stage has ended. price_per_hour: of all machines together, in whatever currency."""
    took = run.seconds()
    if not took:
        return None
    lost = _lost(run)
    rounds = sorted({r for r, _ in [*took, *lost]})
    rows: PerRound = {
        stage.replace("_", " "): {r: took[r, stage] for r in rounds if (r, stage) in took}
        for stage in STAGES
        if any(stage == ran for _, ran in took)
    }
    if lost:
        rows["stopped or failed attempts"] = {
            r: sum(seconds for (of, _), seconds in lost.items() if of == r) for r in {r for r, _ in lost}
        }
    tables_ = [tables.over_rounds(rows, rounds, "stage", show=tables.duration, colour=1, total=True)]
    hours = device_hours(run.events)
    if any(hours.values()):
        by_stage: PerRound = {
            stage.replace("_", " "): {r: hours[r, stage] for r in rounds if (r, stage) in hours}
            for stage in STAGES
            if any(stage == ran for _, ran in hours)
        }
        tables_.append(
            tables.over_rounds(by_stage, rounds, "device-hours", show=number, colour=2, total=True)
        )
    if price_per_hour is not None:
        costs = {
            name: {r: seconds / 3600 * price_per_hour for r, seconds in row.items()}
            for name, row in rows.items()
        }
        caption = f"cost at {price_per_hour:,.2f} an hour"
        tables_.append(tables.over_rounds(costs, rounds, caption, show=_money, colour=4, total=True))
    made = _made(run)
    if made:
        tables_.append(tables.over_rounds(made, rounds, "made and asked", show=tables.count, colour=3))
    return join(element("p", _lead(run), _class="lead"), *tables_)


def _lead(run: Run) -> str:
    told = "Wall time of the attempt that committed each stage; what attempts before it lost stands apart."
    starts = Counter(event["event"] for event in run.events)
    ends = sum(starts[f"stage_{end}"] for end in ("committed", "stopped", "failed"))
    killed = starts["stage_started"] - ends - (run.state() == "running")
    ended = [event for event in run.events if event["event"] in ENDS]
    known = [hours for event in ended if (hours := hours_of(event)) is not None]
    if any(known):
        told += (
            " Device-hours are the accelerators that a stage's processes had, times hours, all attempts "
            "together; those of judge servers are not among them."
        )
        if len(known) < len(ended):
            told += f" Attempts that do not say how many they had: {len(ended) - len(known)}."
    elif known and len(known) == len(ended):
        told += " No stage had an accelerator."
    if killed > 0:
        told += f" Attempts that were killed, which leaves no time of theirs: {killed}."
    return told


def _lost(run: Run) -> dict[tuple[int, str], float]:
    """Seconds of attempts that ended without a commit, by (round, stage)."""
    lost: dict[tuple[int, str], float] = {}
    for event in run.events:
        if event["event"] in ("stage_stopped", "stage_failed") and is_number(event.get("seconds")):
            place = event["round"], event["stage"]
            lost[place] = lost.get(place, 0.0) + event["seconds"]
    return lost


def _made(run: Run) -> PerRound:
    """Counts by round, of what is known."""
    counts: PerRound = {}
    sources: tuple[tuple[str, Callable[[int], int | None]], ...] = (
        ("takes filmed to learn from", lambda r: run.num_rows(r, "sample", "takes.parquet")),
        ("takes filmed to measure", lambda r: run.num_rows(r, "evaluate", "takes.parquet")),
        ("votes asked", lambda r: run.num_rows(r, "label", "votes.parquet")),
        ("pairs made", lambda r: run.num_rows(r, "pair", "pairs.parquet")),
    )
    for name, count in sources:
        found = {r: num for r in run.rounds if (num := count(r)) is not None}
        if found:
            counts[name] = dict(found)
    for r in run.rounds:
        for stage in STAGES:
            for name, value in _tokens(run.json(r, stage, "metrics.json") or {}).items():
                counts.setdefault(f"{stage.replace('_', ' ')}: {name}", {})[r] = value
    return counts


def _tokens(metrics: Mapping[str, object]) -> dict[str, float]:
    """Whatever a stage counted in tokens, such as a judge behind a server that says."""
    return {
        name.removeprefix("num_").replace("_", " "): value
        for name, value in metrics.items()
        if name.endswith("tokens") and is_number(value)
    }


def _money(value: float) -> str:
    return f"{value:,.2f}"

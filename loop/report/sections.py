"""The remaining sections: header, summary, categories, pairs, data and configuration."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from loop.config import PARTS
from loop.device_hours import device_hours
from loop.past import ended_by_patience
from loop.report import tables
from loop.report.charts import interval, number
from loop.report.collect import Row, Run, is_number
from loop.report.markup import Html, element, join

_MOST_SKIPS = 20  # lines


def status(run: Run) -> tuple[str, str]:
    """(state, what the pill says)."""
    state, upcoming = run.state(), run.next_stage()
    ended = ended_by_patience(run.events)
    if ended is not None:
        return state, f"out of patience after round {ended}"
    if upcoming is None:
        return state, "complete"
    place = f"round {upcoming[0]}, {upcoming[1].replace('_', ' ')}"
    return state, f"{state} in {place}" if state in ("failed", "running") else f"{state}, next is {place}"


def header(run: Run) -> Html:
    kind, told = status(run)
    wanted = run.rounds_wanted
    done = sum(1 for r in run.rounds if r and run.kept(r) is not None)
    facts = [
        ("seed", str(run.config.get("seed", "–"))),
        ("rounds", f"{done} of {wanted}" if wanted is not None else str(done)),
    ]
    spent = sum(run.seconds().values())
    facts += [("time", tables.duration(spent))] if spent else []
    hours = sum(device_hours(run.events).values())
    facts += [("device-hours", number(hours))] if hours else []
    starts = [event for event in run.events if event["event"] == "campaign_started"]
    if starts:
        day = datetime.fromtimestamp(starts[0]["time"], UTC)
        facts += [("begun", f"{day.day} {day:%B %Y}"), ("code", _commit(starts[-1], "code"))]
    return element(
        "header",
        element("p", "retake · campaign report", _class="eyebrow"),
        element("div", element("h1", run.name), element("span", told, _class=f"pill {kind}"), _class="name"),
        element(
            "dl",
            *(element("div", element("dt", name), element("dd", value)) for name, value in facts),
            _class="facts",
        ),
    )


def summary(run: Run) -> Html:
    """The outcome in one sentence: from the base to the last kept round, with its interval."""
    decided = [r for r in run.rounds if r and run.kept(r) is not None]
    kept = [r for r in decided if run.kept(r)]
    last = run.last_kept()
    base, end = run.metric("oracle_total", 0), run.metric("oracle_total", last)
    rounds = f"{len(decided)} round{'' if len(decided) == 1 else 's'}"
    if base is None and run.metric("win_rate_vs_base", last) is None:
        return element("p", "Nothing has been evaluated yet.", _class="summary")
    if last == 0:
        level = f": the oracle total of the base is {_level(base)}" if base else ""
        told = (
            f"After {rounds} no update was kept and the base is still in force"
            if decided
            else "No update is done yet"
        )
        return element("p", f"{told}{level}.", _class="summary")
    real = run.metric("real_oracle_total", last)
    start = f"After {rounds}, {len(kept)} kept"
    if base is None or end is None:
        rate = run.metric("win_rate_vs_base", last)
        told = (
            ""
            if rate is None
            else (f"the judge prefers round {last} to the base in {_percent(rate)} of comparisons, ties half")
        )
        return element("p", join(start, ", ", told, "."), _class="summary")
    return element(
        "p",
        f"{start}, the oracle total {_went(base, end)} from ",
        element("b", _level(base)),
        " for the base to ",
        element("b", _level(end)),
        f" in round {last}, the last one kept",
        ", and the two intervals overlap" if _overlap(base, end) else "",
        f"; real clips score {number(real['value'])}" if real else "",
        "; in brackets, 95\u00a0% intervals." if interval(end.get("low"), end.get("high")) else ".",
        _class="summary",
    )


def data(run: Run) -> Html | None:
    """Anchors by part, and every clip or pair of clips that could not be used."""
    if run.artefact(0, "prepare") is None:
        return None
    parts = run.counts(0, "prepare", "anchors.parquet", "part")
    skips = run.rows(0, "prepare", "skips.json")
    counted = ", ".join(f"{parts[part]} {part}" for part in PARTS if parts[part])
    told = f"{sum(parts.values())} real clips are anchors: {counted}. "
    told += f"{len(skips)} could not be used." if skips else "None was left out."
    lead = element("p", told, _class="lead")
    if not skips:
        return lead
    rows = [[str(skip.get("file", "")), str(skip.get("reason", ""))] for skip in skips[:_MOST_SKIPS]]
    if len(skips) > _MOST_SKIPS:
        rows.append([f"{len(skips) - _MOST_SKIPS} more", "round-000/prepare/skips.json lists them"])
    return element("div", lead, tables.plain(("left out", "why"), rows))


_OF_CATEGORIES = (
    ("oracle_total", "oracle total"),
    ("win_rate_vs_base", "win rate against base"),
    ("fool_rate", "fool rate"),
    ("motion_magnitude", "motion"),
)


def categories(run: Run) -> Html | None:
    """What became of each category of prompts, by round; None where there are not at least two."""
    rows = run.by_category
    if len({row["category"] for row in rows}) < 2:
        return None
    made: list[Html] = []
    for colour, (name, title) in enumerate(_OF_CATEGORIES, start=1):
        values: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["metric"] == name:
                values.setdefault(str(row["category"]), {})[row["round"]] = float(row["value"])
        if values:
            rounds = sorted({r for of in values.values() for r in of})
            table = tables.over_rounds(
                dict(sorted(values.items())), rounds, title, show=number, colour=colour
            )
            made.append(table)
    lead = element(
        "p",
        "Means over the prompts of one category; retake curves --categories prints them with intervals. A "
        "category has few prompts, so small differences are chance.",
        _class="lead",
    )
    return element("div", lead, element("div", *made, _class="two")) if made else None


def pairs(run: Run) -> Html | None:
    """Pairs kept by source and dropped by reason."""
    rounds = [r for r in run.rounds if run.artefact(r, "pair")]
    if not rounds:
        return None
    kept: dict[str, dict[int, float]] = {}
    dropped: dict[str, dict[int, float]] = {}
    for r in rounds:
        for source, num in run.counts(r, "pair", "pairs.parquet", "source").items():
            kept.setdefault(str(source), {})[r] = num
        for row in run.table(r, "pair", "drops.parquet", ("source", "reason", "count")):
            line = dropped.setdefault(f"{str(row['reason']).replace('_', ' ')} · {row['source']}", {})
            line[r] = line.get(r, 0) + row["count"]
    unused = [str(r) for r in rounds if _learned_without(run, r) and any(r in line for line in kept.values())]
    both = element(
        "div",
        tables.over_rounds(
            dict(sorted(kept.items())), rounds, "kept, by source", show=tables.count, colour=3, total=True
        ),
        tables.over_rounds(
            dict(sorted(dropped.items())),
            rounds,
            "dropped, by reason",
            show=tables.count,
            colour=6,
            total=True,
        ),
        _class="two",
    )
    if not unused:
        return both
    lead = f"Round {', '.join(unused)} learned from real clips alone and was not trained on its pairs."
    return element("div", element("p", lead, _class="lead"), both)


def _learned_without(run: Run, number: int) -> bool:
    """Whether a round's update was one that reads no pairs, such as a supervised one."""
    update = run.json(number, "update", "metrics.json")
    return update is not None and update.get("num_pairs") == 0 and "skipped" not in update


def configuration(run: Run) -> Html:
    """Exactly what ran: the git state, the resolved config, the file as given, and package versions."""
    versions = run.versions()
    blocks = [
        element(
            "details",
            element("summary", "Resolved configuration"),
            element("pre", json.dumps(run.config, indent=2, ensure_ascii=False)),
        )
        if run.config
        else None,
        element("details", element("summary", "campaign.yaml as given"), element("pre", run.given))
        if run.given
        else None,
        element(
            "details",
            element("summary", f"Package versions ({len(versions)})"),
            element(
                "dl",
                *(
                    element("div", element("dt", name), element("dd", version))
                    for name, version in versions.items()
                ),
                _class="versions",
            ),
        )
        if versions
        else None,
    ]
    if not any(blocks):
        blocks = [
            element("p", "Neither resolved.json nor campaign.yaml is in the run directory.", _class="lead")
        ]
    return join(_git(run), *blocks)


def _git(run: Run) -> Html | None:
    """The commits that each start of the campaign found, each state once."""
    starts = [event for event in run.events if event["event"] == "campaign_started"]
    found = list(dict.fromkeys((_commit(start, "code"), _commit(start, "config")) for start in starts))
    if not found:
        return None
    rows = [[code, config] for code, config in found]
    return tables.plain(("code at commit", "config file at commit"), rows)


def _commit(start: Row, what: str) -> str:
    state = (start.get("git") or {}).get(what)
    if not state:
        return "unknown" if what == "code" else "shipped, or not under git"
    return f"{state['commit'][:12]}{' with changes' if state['dirty'] else ''}"


def _overlap(one: Row, other: Row) -> bool:
    bounds = [row.get(side) for row in (one, other) for side in ("low", "high")]
    return all(map(is_number, bounds)) and one["low"] <= other["high"] and other["low"] <= one["high"]


def _went(base: Row, end: Row) -> str:
    """Rose or fell only where the intervals say so."""
    if _overlap(base, end):
        return "went"
    return "rose" if end["value"] > base["value"] else "fell"


def _level(row: Row) -> str:
    bounds = interval(row.get("low"), row.get("high"))
    return number(float(row["value"])) + (f" ({bounds})" if bounds else "")


def _percent(row: Row) -> str:
    low, high = row.get("low"), row.get("high")
    told = f" ({100 * low:.0f} to {100 * high:.0f} %)" if is_number(low) and is_number(high) else ""
    return f"{100 * row['value']:.0f} %{told}"

"""The curves section: one chart per metric over rounds, grouped by what they tell about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loop.report.charts import Point, curve, interval, number
from loop.report.collect import Row, Run, is_number
from loop.report.known_metrics import BY_NAME, GROUPS, HELD_OUT, REAL, Group, Metric
from loop.report.markup import Html, element, join
from loop.report.switches import TRAINING, Card, Lines, category_lines, key_of, measured_by, switches


def curves(run: Run) -> Html | None:
    """Every metric found, in the groups above; names that no group knows come last, by their first word."""
    rows = run.metrics
    if not rows:
        return None
    names = {row["metric"] for row in rows}
    # a name that only begins so is a metric of its own: it has no counterpart of takes
    reals = {
        row["metric"]: float(row["value"])
        for row in rows
        if row["metric"].startswith(REAL) and row["metric"].removeprefix(REAL) in names
    }
    groups = (*GROUPS, *_strangers(sorted(names - set(BY_NAME) - set(reals))))
    told = "Bands and bars are 95 % intervals. The bold number belongs to the last round kept."
    if any(row["kept"] is False for row in rows):
        told += " A hollow point is a candidate that was rolled back."
    of_categories = category_lines(run)
    cards = {group.title: _cards(run, group, rows, reals, of_categories) for group in groups}
    return join(
        element("p", told, _class="lead"),
        switches({title: made for title, made in cards.items() if made}, rows, of_categories),
        *(_group(group, cards[group.title]) for group in groups if cards[group.title]),
        element("p", "No chart is chosen.", _class="lead nothing", hidden=True),
    )


def _strangers(names: Sequence[str]) -> list[Group]:
    """Metrics that this file does not know: a group for each first word that at least two of them share."""
    by_word: dict[str, list[str]] = {}
    for name in names:
        word = HELD_OUT if name.startswith(HELD_OUT) else name.partition("_")[0]
        by_word.setdefault(word, []).append(name)
    groups = [_generic(word, found) for word, found in by_word.items() if len(found) > 1]
    alone = [found[0] for found in by_word.values() if len(found) == 1]
    return groups + ([_generic("other", alone)] if alone else [])


def _generic(word: str, names: Sequence[str]) -> Group:
    metrics = tuple(Metric(name, _plain(name).capitalize(), "") for name in names)
    return Group(f"{_plain(word).capitalize()} measures", "", metrics, colour=5)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def points_of(rows: Sequence[Row], about_judge: bool = False) -> list[Point]:
    """Metric rows of one curve as points, by round."""
    return [
        Point(
            round=int(row["round"]),
            value=float(row["value"]),
            low=float(row["low"]) if is_number(row.get("low")) else None,
            high=float(row["high"]) if is_number(row.get("high")) else None,
            num_clips=row.get("num_clips"),
            kept=True if about_judge else row["kept"],
        )
        for row in sorted(rows, key=lambda row: row["round"])
    ]


def _cards(
    run: Run, group: Group, rows: Sequence[Row], reals: Mapping[str, float], of_categories: Lines
) -> list[Card]:
    cards: list[Card] = []
    for metric in group.metrics:
        lines: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if row["metric"] == metric.name:
                lines.setdefault((row.get("part") or "", measured_by(row)), []).append(row)
        several = len({part for part, _ in lines}) > 1
        for (part, judge), line in sorted(lines.items()):
            told = f"{part} part" if several else ""
            key = key_of(line[0])
            within = [point[1] for points in of_categories.get(key, {}).values() for point in points]
            html = _card(run, group, metric, line, told, reals.get(REAL + metric.name), within)
            title = ", ".join(word for word in (metric.title, metric.note, told) if word)
            cards.append(
                Card(key, title if len(lines) == 1 else f"{title}, {judge or 'no judge'}", judge, html)
            )
    return cards


def _group(group: Group, cards: Sequence[Card]) -> Html:
    kind = "charts with-hero" if group.metrics[0].name == "oracle_total" else "charts"
    return element(
        "div",
        element("h3", group.title),
        element("p", group.lead, _class="lead") if group.lead else None,
        element("div", *(card.html for card in cards), _class=f"{kind} colour-{group.colour}"),
        _class="group",
    )


def _card(
    run: Run,
    group: Group,
    metric: Metric,
    rows: Sequence[Row],
    part: str,
    real: float | None,
    within: Sequence[float],
) -> Html:
    judge = measured_by(rows[0])
    points = points_of(rows, group.about_judge)
    large = metric.name == "oracle_total"
    # a rolled-back candidate is not what the campaign has now
    last = next((point for point in reversed(points) if point.kept is not False), points[-1])
    told = [metric.note, part, f"{metric.better} is better" if metric.better else ""]
    latest = "base" if last.round == 0 else f"round {last.round}"
    bounds95 = interval(last.low, last.high)
    changes = judge == TRAINING
    return element(
        "figure",
        element(
            "figcaption",
            element("span", metric.title, _class="title"),
            element("span", number(last.value), _class="latest"),
            element("span", ", ".join(word for word in told if word), _class="note"),
            element("span", f"{latest}{', ' if bounds95 else ''}{bounds95}", _class="note right"),
        ),
        curve(
            points,
            metric.title,
            num_rounds=max(run.rounds, default=0),
            bounds=metric.bounds,
            reference=metric.reference,
            real=real,
            large=large,
            within=within,
        ),
        element("p", "judge changes every round", _class="warning", title="measured by the training judge")
        if changes
        else None,
        element("p", f"frozen judge: {judge}", _class="note") if judge and not changes else None,
        _class="card hero" if large else "card",
        data_key=key_of(rows[0]),
        data_judge=judge,
    )

"""The page of `retake compare --html`: small charts of every run beside each other, and the differences."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from loop.compare import Arm, Comparison
from loop.compare_text import footnoted, legend, value_text
from loop.report import tables
from loop.report.charts import Point, curve
from loop.report.curves import GROUPS, Metric
from loop.report.markup import Html, element, join

_KNOWN = {metric.name: metric for group in GROUPS for metric in group.metrics}


def page(found: Comparison) -> str:
    """One file that opens offline and runs no script."""
    first, *others = found.arms
    arms = [
        element("div", element("dt", arm.name), element("dd", ", ".join(str(run) for run in arm.runs)))
        for arm in found.arms
    ]
    told = [*legend(found.arms), *found.notes]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'",
        ),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{' · '.join(arm.name for arm in found.arms)} · retake"),
        element("style", Html(files("loop.report").joinpath("style.css").read_text(encoding="utf-8"))),
    )
    body = element(
        "main",
        element(
            "header",
            element("p", "retake · comparison of runs", _class="eyebrow"),
            element(
                "div",
                element("h1", f"{', '.join(arm.name for arm in others)} against {first.name}"),
                _class="name",
            ),
            element("dl", *arms, _class="facts"),
        ),
        *(element("p", line, _class="lead") for line in told),
        *(_metric(found, name) for name in found.metrics),
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en")


def _metric(found: Comparison, name: str) -> Html:
    """A chart for each arm on the same axes, and a table of values and differences."""
    known = _KNOWN.get(name, Metric(name, name.replace("_", " "), ""))
    by_arm = {arm: _points(found, name, arm) for arm in found.arms}
    bounds = known.bounds or _bounds([point for points in by_arm.values() for point in points])
    cards = [
        element(
            "figure",
            element("figcaption", element("span", arm.name, _class="title")),
            curve(
                points,
                f"{known.title}, {arm.name}",
                num_rounds=max(found.rounds),
                bounds=bounds,
                reference=known.reference,
            ),
            _class="card",
        )
        for arm, points in by_arm.items()
        if points
    ]
    told = ", ".join(
        word for word in (known.note, f"{known.better} is better" if known.better else "") if word
    )
    return element(
        "section",
        element("h2", known.title),
        element("p", told, _class="lead") if told else None,
        element("div", *cards, _class="charts colour-1"),
        _table(found, name),
    )


def _table(found: Comparison, name: str) -> Html:
    first, *others = found.arms
    heads = ["round", *(arm.name for arm in found.arms), *(f"{arm.name} − {first.name}" for arm in others)]
    rows: list[list[str]] = []
    reasons: dict[str, int] = {}
    for number in found.rounds:
        cells = [found.cells.get((name, number, arm.name)) for arm in found.arms]
        if any(cells):
            told = [value_text(cell) for cell in cells]
            told += [footnoted(cell, reasons) for cell in cells[1:]]
            rows.append(["base" if number == 0 else f"round {number}", *told])
    notes = [element("p", f"({number}) {reason}", _class="note") for reason, number in reasons.items()]
    return join(tables.plain(heads, rows), *notes)


def _points(found: Comparison, name: str, arm: Arm) -> list[Point]:
    """What could be measured; several runs have a mean without a band."""
    return [
        Point(number, cell.value, cell.low, cell.high, cell.num_clips, cell.kept)
        for number in found.rounds
        if (cell := found.cells.get((name, number, arm.name))) is not None and cell.value is not None
    ]


def _bounds(points: Sequence[Point]) -> tuple[float, float]:
    """From zero, or the lowest below it, to a little above the highest: the same for all arms."""
    values = [end for p in points for end in (p.value, p.low, p.high) if end is not None]
    low, high = min([0.0, *values]), max([0.0, *values])
    return (low, high + 0.05 * (high - low)) if high > low else (0.0, 1.0)

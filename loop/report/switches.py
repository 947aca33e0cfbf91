"""What one can switch on the curves: intervals, rolled-back rounds, judges, a category, which charts.

Without the script the switches are hidden and every chart stands there with all that it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loop.report.collect import Row, Run, is_number
from loop.report.known_metrics import HELD_OUT
from loop.report.markup import Html, data_block, element, join

# a judge that stays the same for the whole campaign names itself so in the metrics' judge column
FROZEN_JUDGE = ("frozen", "held")
TRAINING = "training judge"
MOST_CATEGORIES = 24  # to choose from; those with most clips
# key of a chart → category → (round, value, low, high, kept) by round
Lines = dict[str, dict[str, list[tuple[int, float, float | None, float | None, bool]]]]


@dataclass(frozen=True)
class Card:
    """One chart with what the switches need to know of it."""

    key: str
    title: str
    judge: str
    html: Html


def measured_by(row: Row) -> str:
    """Empty for no judge, the name of a frozen one, TRAINING for whichever judge was in force then."""
    judge = str(row.get("judge") or "")
    if row["metric"].startswith(HELD_OUT):
        return f"held-out judge {judge[:12]}".strip()
    return judge if not judge or judge.startswith(FROZEN_JUDGE) else TRAINING


def key_of(row: Row) -> str:
    """Rows of one chart share it, whatever their category."""
    return "/".join((row["metric"], row.get("part") or "", measured_by(row)))


def category_lines(run: Run) -> Lines:
    """The curves of single categories, of the largest where there are many."""
    sizes: dict[str, int] = {}
    for row in run.by_category:
        sizes[row["category"]] = max(sizes.get(row["category"], 0), row.get("num_clips") or 0)
    largest = set(sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_CATEGORIES])
    lines: Lines = {}
    for row in sorted(run.by_category, key=lambda row: row["round"]):
        if row["category"] in largest:
            low, high = (_short(row[side]) if is_number(row.get(side)) else None for side in ("low", "high"))
            point = (int(row["round"]), _short(row["value"]), low, high, row["kept"] is not False)
            lines.setdefault(key_of(row), {}).setdefault(row["category"], []).append(point)
    return lines


def switches(cards: Mapping[str, Sequence[Card]], rows: Sequence[Row], lines: Lines) -> Html:
    """The bar above the charts, each switch only where there is something to switch."""
    names = sorted({category for of in lines.values() for category in of})
    judges = sorted({card.judge for made in cards.values() for card in made if card.judge})
    parts = [
        _tick("intervals", "Intervals") if any(is_number(row.get("low")) for row in rows) else None,
        _tick("back", "Rolled-back rounds") if any(row["kept"] is False for row in rows) else None,
        choice("judge", "Judge", [("", "all"), *((j, j) for j in judges), ("none", "measured without one")])
        if judges
        else None,
        choice("category", "Category", [("", "all together"), *((name, name) for name in names)])
        if names
        else None,
        _chooser(cards),
    ]
    bar = element(
        "div", *parts, _class="switches", id="switches", role="group", aria_label="curves", hidden=True
    )
    return join(bar, data_block("category-lines", lines) if names else None)


def choice(name: str, label: str, options: Sequence[tuple[str, str]]) -> Html:
    """A labelled drop-down list; options: (value, what it says)."""
    told = (element("option", says, value=value) for value, says in options)
    return element("label", element("span", label), element("select", *told, name=name), _class="choice")


def _tick(name: str, label: str, **more: str) -> Html:
    box = element("input", type="checkbox", name=name, checked=True, autocomplete="off", **more)
    return element("label", box, element("span", label), _class="tick")


def _chooser(cards: Mapping[str, Sequence[Card]]) -> Html:
    groups = [
        element(
            "fieldset",
            element("legend", title),
            *(_tick("chart", card.title, value=card.key) for card in made),
        )
        for title, made in cards.items()
    ]
    both = (
        element("button", name, type="button", _class=name.lower().replace(" ", "-"))
        for name in ("Show all", "Hide all")
    )
    return element(
        "details",
        element("summary", "Charts"),
        element("div", element("p", *both, _class="both"), *groups, _class="panel"),
        _class="chooser",
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")

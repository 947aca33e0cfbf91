"""Small charts: a curve with its 95 % band over rounds, and a stacked histogram.

Matplotlib draws them as SVG, which is put into the page. Colours are the page's own (style.css), so that
charts follow its light and dark schemes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from loop.report.markup import Html

# Matplotlib takes no CSS variables: each colour is drawn as a stand-in that nothing else uses.
_COLOURS = {
    name: f"#c0ffe{i:x}"
    for i, name in enumerate(
        ("colour", "soft", "hair", "ink", "card", "blue", "orange", "green", "violet", "grey", "red")
    )
}
_PALETTE = ("blue", "orange", "green", "violet", "grey", "red")  # .colour-1 … .colour-6 of style.css
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "retake",  # the same chart, the same bytes
    "font.size": 11,
    "path.simplify": False,
    "axes.unicode_minus": True,
}
_CLASSES = ("point", "bar", "value", "halo", "interval", "back")
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Point:
    round: int
    value: float
    low: float | None  # 95 % interval; none if the metric has none
    high: float | None
    num_clips: int | None = None
    kept: bool | None = True  # False: this round's candidate was rolled back


def number(value: float) -> str:
    """Three significant digits at most, with a true minus sign."""
    if value != 0 and abs(value) < 0.0005:
        text = f"{value:.1e}"
    elif abs(value) < 1:
        text = f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3f}"
    elif abs(value) < 100:
        text = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    else:
        text = f"{value:,.0f}"
    return text.replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def curve(
    points: Sequence[Point],
    title: str,
    *,
    num_rounds: int,
    bounds: tuple[float, float] | None = None,
    reference: float | None = None,
    real: float | None = None,
    large: bool = False,
    within: Sequence[float] = (),
) -> Html:
    """One metric over rounds 0…num_rounds. Rolled-back candidates are hollow and hang off their parent.

    bounds: the y axis; None = from zero (or the lowest value below it) to a round number above the data and
    above the values of `within`, which the page's script may draw into the chart by its data- attributes.
    reference: a value that means "no difference"; real: the same measure on real clips.
    """
    with rc_context(_SETTINGS):
        width, height = (680, 430) if large else (320, 168)
        figure, axes = _canvas(width, height, left=36, right=14, top=14, bottom=22)
        low, high = bounds or _span(points, [*within, *([] if real is None else [real])])
        ticks = MaxNLocator(nbins=5 if large else 2, steps=[1, 2, 2.5, 4, 5, 10]).tick_values(low, high)
        axes.set_ylim(*(bounds or (ticks[0], ticks[-1])))
        axes.set_yticks([t for t in ticks if bounds is None or low <= t <= high])
        axes.grid(axis="y", color=_COLOURS["hair"], linewidth=1)
        axes.set_xlim(-0.02 * max(1, num_rounds), max(1, num_rounds) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12 if large else 7, integer=True))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda r, _: _round_name(round(r)) if large or r == 0 else f"{r:.0f}")
        )
        if reference is not None:
            axes.axhline(reference, color=_COLOURS["soft"], linewidth=1, linestyle=(0, (2, 4)))
        if real is not None:
            axes.axhline(real, color=_COLOURS["soft"], linewidth=1.2, linestyle=(0, (7, 4)))
            _name_real(axes, points, real, large)
        banded = _band(axes, [p for p in points if p.kept is not False])
        _lines(axes, points)
        told = {}
        for p in points:
            with_bar = large or not banded or p.kept is False
            name = _mark(axes, p, large, with_bar, large and len(points) <= 10, last=p.round == num_rounds)
            told[name] = _tell(p)
        heard = "; ".join(f"{_round_name(p.round)} {number(p.value)}" for p in points)
        places = {
            "data-box": f"36 14 {width - 36 - 14} {height - 14 - 22}",  # left, top, width, height of the axes
            "data-x": "{:g} {:g}".format(*axes.get_xlim()),
            "data-y": "{:g} {:g}".format(*axes.get_ylim()),
        }
        return _page_svg(figure, "curve", f"{title}: {heard}", told, places)


def _canvas(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """A figure of so many user units with axes inside these margins and no frame."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, pad=6, labelcolor=_COLOURS["soft"])
    axes.set_axisbelow(True)
    return figure, axes


def _span(points: Sequence[Point], others: Sequence[float]) -> tuple[float, float]:
    values = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    values += others
    low, high = min([0.0, *values]), max([0.0, *values])
    return (0.0, 1.0) if low == high else (low, high)


def _name_real(axes: Axes, points: Sequence[Point], real: float, large: bool) -> None:
    """Says what the dashed line is: beside it where the chart is large, else in the emptier half."""
    low, high = axes.get_ylim()
    full = sum(p.value for p in points) / len(points) > (low + high) / 2
    place, side = ((0, real), "left") if large else ((1, 0.05 if full else 0.85), "right")
    label = axes.annotate(
        f"{'' if large else '– – '}real clips {number(real)}",
        place, (8, 5 if real < 0.9 * high else -12) if large else (0, 0),
        xycoords="data" if large else "axes fraction", textcoords="offset points",
        ha=side, color=_COLOURS["soft"], zorder=6,
    )  # fmt: skip
    label.set_gid("halo-real")


def _band(axes: Axes, points: Sequence[Point]) -> bool:
    """Whether there is one: a single interval has no width to fill."""
    known = [(p.round, p.low, p.high) for p in points if p.low is not None and p.high is not None]
    if len(known) > 1:
        rounds, low, high = zip(*known, strict=True)
        band = axes.fill_between(rounds, low, high, color=_COLOURS["colour"], alpha=0.14, linewidth=0)
        band.set_gid("interval-band")
    return len(known) > 1


def _lines(axes: Axes, points: Sequence[Point]) -> None:
    """A solid line through what was kept, a dashed one from the parent to each rolled-back candidate."""
    parent: Point | None = None
    for p in points:
        if parent is not None:
            kept = p.kept is not False
            [line] = axes.plot(
                [parent.round, p.round], [parent.value, p.value], color=_COLOURS["colour"],
                linewidth=2 if kept else 1.4, linestyle="-" if kept else (0, (3, 4)), solid_capstyle="round",
            )  # fmt: skip
            line.set_gid(None if kept else f"back-line-{p.round}")
        if p.kept is not False:
            parent = p


def _mark(axes: Axes, p: Point, large: bool, with_bar: bool, with_value: bool, last: bool) -> str:
    """A point, with its interval as a bar if asked for; returns the id of what can be pointed at."""
    hollow, colour = p.kept is False, _COLOURS["colour"]
    name = f"back-{p.round}" if hollow else str(p.round)
    if p.low is not None and p.high is not None and with_bar:
        bar = axes.vlines(p.round, p.low, p.high, color=colour, linewidth=1.2, alpha=0.55)
        bar.set_gid(f"interval-{name}")
    [dot] = axes.plot(
        [p.round], [p.value], marker="o", markersize=9 if large else 6.4, markeredgewidth=1.5,
        color=_COLOURS["card"] if hollow else colour,
        markeredgecolor=colour if hollow else _COLOURS["card"], clip_on=False, zorder=5,
    )  # fmt: skip
    dot.set_gid(f"point-{name}")
    if with_value:
        side = "left" if p.round == 0 else "right" if last else "center"
        text = axes.annotate(
            number(p.value), (p.round, p.value), (8 if side == "left" else -8 if last else 0, 10),
            textcoords="offset points", ha=side, color=_COLOURS["ink"], fontsize=13, zorder=6,
        )  # fmt: skip
        text.set_gid(f"value-{name}")
    return f"point-{name}"


def _tell(p: Point) -> str:
    """Everything known about a point, for its tooltip."""
    bounds = interval(p.low, p.high)
    told = f"{_round_name(p.round)}: {number(p.value)}"
    told += f", 95 % interval {bounds}" if bounds else ""
    told += f", {p.num_clips} clips" if p.num_clips else ""
    return told + (", rolled back" if p.kept is False else "")


def histogram(counts: Mapping[str, Sequence[int]], title: str, palette: Mapping[str, int]) -> Html:
    """Stacked bars of counts per kind over equal bins of [0, 1]; palette: each kind's colour number."""
    num_bins = max((len(bins) for bins in counts.values()), default=0)
    totals = [sum(bins[i] for bins in counts.values()) for i in range(num_bins)]
    told = {}
    with rc_context(_SETTINGS):
        figure, axes = _canvas(320, 132, left=8, right=8, top=10, bottom=22)
        places = (np.arange(num_bins) + 0.5) / max(1, num_bins)
        base = np.zeros(num_bins)
        for kind, bins in counts.items():
            colour = _COLOURS[_PALETTE[palette[kind] - 1]]
            drawn = axes.bar(places, bins, 0.88 / max(1, num_bins), base, color=colour, alpha=0.82)
            for i, bar in enumerate(drawn):
                bar.set_gid(f"bar-{palette[kind]}-{i}")
                told[f"bar-{palette[kind]}-{i}"] = (
                    f"{i / num_bins:g} to {(i + 1) / num_bins:g}: {bins[i]} of {totals[i]}, {kind}"
                )
            base += bins
        axes.axhline(0, color=_COLOURS["hair"], linewidth=1)
        axes.set_ylim(0, max([1, *totals]))
        axes.set_yticks([])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        return _page_svg(figure, "histogram", f"{title}: {', '.join(map(str, totals))}", told)


def _round_name(r: int) -> str:
    return "base" if r == 0 else f"round {r}"


def _page_svg(
    figure: Figure, kind: str, label: str, told: Mapping[str, str], places: Mapping[str, str] | None = None
) -> Html:
    """The figure as an element of the page: its colours and font, tooltips, no ids that others could have.

    What style.css and the script treat apart has a class of _CLASSES, by the words of its gid.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(file.getvalue())
    unwanted = {f"{{{_SVG}}}{tag}" for tag in ("metadata", "style", "clipPath")}  # style: of the whole page
    for parent in list(root.iter()):
        parent.attrib.pop("clip-path", None)
        for child in list(parent):
            if child.tag in unwanted:
                parent.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"class": kind, "role": "img", "aria-label": label, **(places or {})})
    used = {v.lstrip("#") for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")}
    for parent in root.iter():
        name = parent.attrib.get("id", "")
        if name in told:
            tooltip = ElementTree.Element(f"{{{_SVG}}}title")
            tooltip.text = told[name]
            parent.insert(0, tooltip)
        if kinds := [word for word in name.split("-") if word in _CLASSES]:
            parent.set("class", " ".join(kinds))
        if name and name not in used:
            del parent.attrib["id"]
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", text)  # the page's font, not Matplotlib's
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # known to every HTML parser
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for name, stand_in in _COLOURS.items():
        text = text.replace(stand_in, f"var(--{name})")
    return Html(text)

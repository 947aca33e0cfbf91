"""Small charts as inline SVG: a curve with its 95 % band over rounds, and a stacked histogram."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loop.report.markup import Html, element, join

Scale = Callable[[float], float]  # data → user units
_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, 14.0, 14.0, 22.0  # margins in user units


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
) -> Html:
    """One metric over rounds 0…num_rounds. Rolled-back candidates are hollow and hang off their parent.

    reference: a value that means "no difference"; real: the same measure on real clips.

    bounds: the y axis; None = from zero (or the lowest value below it) to a round number above the data.
    """
    width, height = (680.0, 430.0) if large else (320.0, 168.0)
    low_y, high_y = bounds or _nice_bounds(points, real)
    span_x = max(1, num_rounds)

    def x(round_number: float) -> float:
        return _LEFT + (width - _LEFT - _RIGHT) * (round_number / span_x)

    def y(value: float) -> float:
        inside = min(max(value, low_y), high_y)
        return _TOP + (height - _TOP - _BOTTOM) * (1 - (inside - low_y) / (high_y - low_y))

    parts: list[Html] = []
    for tick in _ticks(low_y, high_y, large):
        parts.append(
            element("line", _class="grid", x1=_LEFT, x2=width - _RIGHT, y1=_at(y(tick)), y2=_at(y(tick)))
        )
        parts.append(element("text", _tick(tick), _class="tick end", x=_LEFT - 6, y=_at(y(tick) + 3.5)))
    for tick_round in _round_ticks(num_rounds, 12 if large else 7):
        label = "base" if tick_round == 0 else f"round {tick_round}" if large else str(tick_round)
        parts.append(
            element(
                "text",
                label,
                _class="tick end" if large and tick_round == num_rounds > 0 else "tick middle",
                x=_at(x(tick_round)),
                y=height - 5,
            )
        )
    if reference is not None:
        at = _at(y(reference))
        parts.append(element("line", _class="reference", x1=_LEFT, x2=width - _RIGHT, y1=at, y2=at))
    if real is not None:
        at = y(real)
        parts.append(
            element("line", _class="target", x1=_LEFT, x2=width - _RIGHT, y1=_at(at), y2=_at(at))
        )
        told_real = f"real clips {number(real)}"
        # below the line where there is no room above it
        parts.append(element("text", told_real, _class="real", x=_LEFT + 8, y=_at(at - 6 if at > 26 else at + 14)))
    parts.append(_band([p for p in points if p.kept is not False], x, y))
    parts.append(_lines(points, x, y))
    for index, p in enumerate(points):
        hollow = p.kept is False
        told = f"{'base' if p.round == 0 else f'round {p.round}'}: {number(p.value)}"
        told += f", 95 % interval {interval(p.low, p.high)}" if interval(p.low, p.high) else ""
        told += f", {p.num_clips} clips" if p.num_clips else ""
        told += ", rolled back" if hollow else ""
        marks: list[Html] = [element("title", told)]
        if p.low is not None and p.high is not None and (hollow or large):
            marks.append(
                element(
                    "line",
                    _class="whisker",
                    x1=_at(x(p.round)),
                    x2=_at(x(p.round)),
                    y1=_at(y(p.low)),
                    y2=_at(y(p.high)),
                )
            )
        radius = 4.5 if large else 3.2
        marks.append(element("circle", _class="hit", cx=_at(x(p.round)), cy=_at(y(p.value)), r=14))
        marks.append(
            element(
                "circle",
                _class="dot hollow" if hollow else "dot",
                cx=_at(x(p.round)),
                cy=_at(y(p.value)),
                r=radius,
            )
        )
        if large and len(points) <= 10:
            side = "start" if index == 0 else "end" if p.round == num_rounds else "middle"
            shift = 8 if side == "start" else -8 if side == "end" else 0
            marks.append(
                element(
                    "text",
                    number(p.value),
                    _class=f"value {side}",
                    x=_at(x(p.round) + shift),
                    y=_at(y(p.value) - 10),
                )
            )
        parts.append(element("g", *marks))
    told = "; ".join(f"{'base' if p.round == 0 else f'round {p.round}'} {number(p.value)}" for p in points)
    return element(
        "svg",
        *parts,
        _class="curve",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"{title}: {told}",
    )


def histogram(counts: Mapping[str, Sequence[int]], title: str, palette: Mapping[str, int]) -> Html:
    """Stacked bars of counts per kind over equal bins of [0, 1]; palette: each kind's colour number."""
    width, height, top, bottom = 320.0, 132.0, 10.0, 22.0
    num_bins = max((len(bins) for bins in counts.values()), default=0)
    totals = [sum(bins[i] for bins in counts.values()) for i in range(num_bins)]
    tallest = max(totals, default=0) or 1
    step = width / max(1, num_bins)
    parts: list[Html] = []
    for i in range(num_bins):
        base = height - bottom
        bars: list[Html] = [element("title", f"{i / num_bins:g} to {(i + 1) / num_bins:g}: {totals[i]}")]
        for kind, bins in counts.items():
            tall = (height - top - bottom) * bins[i] / tallest
            if tall > 0:
                base -= tall
                bars.append(
                    element(
                        "rect",
                        _class=f"bar colour-{palette[kind]}",
                        x=_at(i * step + 1.5),
                        y=_at(base),
                        width=_at(step - 3),
                        height=_at(tall),
                    )
                )
        parts.append(element("g", *bars))
    floor = height - bottom
    parts.append(element("line", _class="axis", x1=0, x2=width, y1=floor, y2=floor))
    for place, side in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts.append(element("text", f"{place:g}", _class=f"tick {side}", x=_at(place * width), y=height - 6))
    return element(
        "svg",
        *parts,
        _class="histogram",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"{title}: {', '.join(map(str, totals))}",
    )


def _band(points: Sequence[Point], x: Scale, y: Scale) -> Html:
    known = [(p.round, p.low, p.high) for p in points if p.low is not None and p.high is not None]
    if len(known) < 2:
        return Html("")
    edge = [(r, high) for r, _, high in known] + [(r, low) for r, low, _ in reversed(known)]
    return element("polygon", _class="band", points=" ".join(f"{_at(x(r))},{_at(y(v))}" for r, v in edge))


def _lines(points: Sequence[Point], x: Scale, y: Scale) -> Html:
    """A solid line through what was kept, a dashed one from the parent to each rolled-back candidate."""
    pieces: list[Html] = []
    parent: Point | None = None
    for p in points:
        if parent is not None:
            pieces.append(
                element(
                    "line",
                    _class="path dashed" if p.kept is False else "path",
                    x1=_at(x(parent.round)),
                    y1=_at(y(parent.value)),
                    x2=_at(x(p.round)),
                    y2=_at(y(p.value)),
                )
            )
        if p.kept is not False:
            parent = p
    return join(*pieces)


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _nice_bounds(points: Sequence[Point], real: float | None) -> tuple[float, float]:
    values = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    values += [] if real is None else [real]
    low, high = min([0.0, *values]), max([0.0, *values])
    if low == high:
        return 0.0, 1.0
    return (-_round_up(-low) if low < 0 else 0.0), _round_up(high)


def _round_up(value: float) -> float:
    """The next of 1, 1.2, 1.6, 2, 3, 4, 5, 6, 8 × a power of ten; each halves and quarters readably."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if m * power >= value * 0.9999)


def _ticks(low: float, high: float, large: bool) -> list[float]:
    if low < 0 < high:
        return [low, 0.0, high]
    leading = f"{high - low:.1e}"[:3]
    num = {"1.0": 5, "5.0": 5, "3.0": 3, "6.0": 3}.get(leading, 4) if large else 2
    return [round(low + (high - low) * i / num, 10) for i in range(num + 1)]


def _round_ticks(num_rounds: int, most: int) -> list[int]:
    step = max(1, math.ceil(num_rounds / most))
    return list(range(0, num_rounds + 1, step))

"""Small charts as inline SVG: a curve with its 95 % band over rounds, and a stacked histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loop.report.markup import Html, element, join

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


@dataclass(frozen=True)
class _Plot:
    """Places of rounds and values in user units."""

    num_rounds: int
    low: float
    high: float
    large: bool

    @property
    def width(self) -> float:
        return 680.0 if self.large else 320.0

    @property
    def height(self) -> float:
        return 430.0 if self.large else 168.0

    @property
    def right(self) -> float:
        return self.width - _RIGHT

    def x(self, round_number: int) -> float:
        return _LEFT + (self.right - _LEFT) * round_number / max(1, self.num_rounds)

    def y(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return _TOP + (self.height - _TOP - _BOTTOM) * (1 - (inside - self.low) / (self.high - self.low))

    def across(self, value: float, kind: str) -> Html:
        at = _at(self.y(value))
        return element("line", _class=kind, x1=_LEFT, x2=self.right, y1=at, y2=at)


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

    bounds: the y axis; None = from zero (or the lowest value below it) to a round number above the data.
    reference: a value that means "no difference"; real: the same measure on real clips.
    """
    plot = _Plot(num_rounds, *(bounds or _nice_bounds(points, real)), large)
    told = "; ".join(f"{_round_name(p.round)} {number(p.value)}" for p in points)
    return element(
        "svg",
        *_axes(plot),
        None if reference is None else plot.across(reference, "reference"),
        None if real is None else _target(plot, real),
        _band(plot, [p for p in points if p.kept is not False]),
        _lines(plot, points),
        *(_mark(plot, p, with_value=large and len(points) <= 10) for p in points),
        _class="curve",
        viewBox=f"0 0 {plot.width:g} {plot.height:g}",
        role="img",
        aria_label=f"{title}: {told}",
    )


def _axes(plot: _Plot) -> Iterator[Html]:
    for tick in _ticks(plot.low, plot.high, plot.large):
        yield plot.across(tick, "grid")
        yield element("text", _tick(tick), _class="tick end", x=_LEFT - 6, y=_at(plot.y(tick) + 3.5))
    for r in _round_ticks(plot.num_rounds, 12 if plot.large else 7):
        name = _round_name(r) if plot.large or r == 0 else str(r)
        side = "end" if plot.large and r == plot.num_rounds > 0 else "middle"
        yield element("text", name, _class=f"tick {side}", x=_at(plot.x(r)), y=plot.height - 5)


def _target(plot: _Plot, real: float) -> Html:
    # the words go below the line where there is no room above it
    at = plot.y(real) - 6 if plot.y(real) > 26 else plot.y(real) + 14
    name = element("text", f"real clips {number(real)}", _class="real", x=_LEFT + 8, y=_at(at))
    return join(plot.across(real, "target"), name)


def _mark(plot: _Plot, p: Point, with_value: bool) -> Html:
    """A point with its interval and, as a title, everything known about it."""
    x, y, hollow = _at(plot.x(p.round)), plot.y(p.value), p.kept is False
    bounds = interval(p.low, p.high)
    told = f"{_round_name(p.round)}: {number(p.value)}"
    told += f", 95 % interval {bounds}" if bounds else ""
    told += f", {p.num_clips} clips" if p.num_clips else ""
    whisker = value = None
    if p.low is not None and p.high is not None and (hollow or plot.large):
        whisker = element("line", _class="whisker", x1=x, x2=x, y1=_at(plot.y(p.low)), y2=_at(plot.y(p.high)))
    if with_value:
        first, last = p.round == 0, p.round == plot.num_rounds
        side, shift = ("start", 8) if first else ("end", -8) if last else ("middle", 0)
        place = _at(plot.x(p.round) + shift)
        value = element("text", number(p.value), _class=f"value {side}", x=place, y=_at(y - 10))
    return element(
        "g",
        element("title", told + (", rolled back" if hollow else "")),
        whisker,
        element("circle", _class="hit", cx=x, cy=_at(y), r=14),
        element(
            "circle", _class="dot hollow" if hollow else "dot", cx=x, cy=_at(y), r=4.5 if plot.large else 3.2
        ),
        value,
    )


def _band(plot: _Plot, points: Sequence[Point]) -> Html | None:
    known = [(p.round, p.low, p.high) for p in points if p.low is not None and p.high is not None]
    if len(known) < 2:
        return None
    edge = [(r, high) for r, _, high in known] + [(r, low) for r, low, _ in reversed(known)]
    corners = " ".join(f"{_at(plot.x(r))},{_at(plot.y(v))}" for r, v in edge)
    return element("polygon", _class="band", points=corners)


def _lines(plot: _Plot, points: Sequence[Point]) -> Html:
    """A solid line through what was kept, a dashed one from the parent to each rolled-back candidate."""
    pieces: list[Html] = []
    parent: Point | None = None
    for p in points:
        if parent is not None:
            kind = "path dashed" if p.kept is False else "path"
            (x1, y1), (x2, y2) = ((_at(plot.x(q.round)), _at(plot.y(q.value))) for q in (parent, p))
            pieces.append(element("line", _class=kind, x1=x1, y1=y1, x2=x2, y2=y2))
        if p.kept is not False:
            parent = p
    return join(*pieces)


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


def _round_name(r: int) -> str:
    return "base" if r == 0 else f"round {r}"


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

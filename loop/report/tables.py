"""Tables of numbers over rounds, with a quiet bar behind each number, and plain key-value lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from loop.report.markup import Child, Html, element


def over_rounds(
    rows: Mapping[str, Mapping[int, float]],
    rounds: Sequence[int],
    caption: str,
    *,
    show: Callable[[float], str],
    colour: int,
    total: bool = False,
) -> Html:
    """rows: name → round → value. Bars are relative to the largest cell."""
    largest = max((value for row in rows.values() for value in row.values()), default=0.0) or 1.0
    head = element("tr", element("th", caption, scope="col"), *(_round_head(r) for r in rounds))
    body = []
    for name, row in rows.items():
        cells = []
        for r in rounds:
            value = row.get(r)
            share = 0.0 if value is None else 100 * value / largest
            text = "" if value is None else show(value)
            cells.append(element("td", element("span", text), style=f"--share:{share:.1f}%"))
        body.append(element("tr", element("th", name, scope="row"), *cells))
    foot = None
    if total:
        sums = [sum(row.get(r, 0.0) for row in rows.values()) for r in rounds]
        foot = element(
            "tfoot",
            element(
                "tr",
                element("th", "total", scope="row"),
                *(element("td", element("span", show(s))) for s in sums),
            ),
        )
    table = element(
        "table", element("thead", head), element("tbody", *body), foot, _class=f"bars colour-{colour}"
    )
    return element("div", table, _class="scroll")


def plain(head: Sequence[str], rows: Sequence[Sequence[Child]], numeric: Sequence[int] = ()) -> Html:
    """An ordinary table; `numeric` columns are right aligned."""

    def side(column: int) -> str | None:
        return "numeric" if column in numeric else None

    return element(
        "div",
        element(
            "table",
            element(
                "thead",
                element("tr", *(element("th", h, scope="col", _class=side(i)) for i, h in enumerate(head))),
            ),
            element(
                "tbody",
                *(
                    element("tr", *(element("td", c, _class=side(i)) for i, c in enumerate(row)))
                    for row in rows
                ),
            ),
            _class="plain",
        ),
        _class="scroll",
    )


def duration(seconds: float) -> str:
    """48 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float) -> str:
    return f"{value:,.0f}"


def _round_head(r: int) -> Html:
    return element("th", "base" if r == 0 else f"round {r}", scope="col")

"""The browser of verdicts: both clips, every vote with its reasoning, the certainty, what became of the pair.

Every card is made here. The first page stands in the document; the others lie in a <template>, which costs a
browser nothing, until the script takes them out to filter and page. Without the script the first page is all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from loop.report import cards
from loop.report.collect import Row, Run, is_number
from loop.report.embed import Clips
from loop.report.fates import Fate, Fates
from loop.report.judged import KINDS, overall_verdicts
from loop.report.markup import Html, element, join
from loop.report.switches import choice

MOST_A_ROUND = 60
MOST_IN_ALL = 360
ON_A_PAGE = 6
NUM_BINS = 5  # of certainty, for the draw
_HOW = (
    "They are drawn evenly over kinds of question and fifths of certainty, by a hash of their names and not "
    "by what they say, so rare ones are seen more often here than they occur; Judge and Pairs count them all."
)
_ORDERS = (("", "as drawn"), ("high", "most certain first"), ("low", "least certain first"))


def verdicts(run: Run, clips: Clips) -> Html | None:
    """The section, or None while no round has been labelled."""
    rounds = [r for r in run.rounds if run.artefact(r, "label")][::-1]
    num_asked: dict[int, int] = {}
    chosen: dict[int, list[Row]] = {}
    for r in rounds:
        chosen[r] = draw(_counted(r, overall_verdicts(run, r), num_asked), MOST_A_ROUND)
    rounds = [r for r in rounds if chosen[r]]
    if not rounds:
        return None
    most = max(ON_A_PAGE, min(MOST_A_ROUND, MOST_IN_ALL // len(rounds)))
    made: list[Html] = []
    fates: list[Fate] = []
    chosen = {r: chosen[r][:most] for r in rounds}
    for r in rounds:
        votes, fate = _votes(run, r, chosen[r]), Fates(run, r, chosen[r])
        ids = {str(v[key]) for v in chosen[r] for key in ("first_id", "second_id")}
        anchors = _files(run, 0, "prepare", "anchors.parquet", "anchor_id", ids)
        files = anchors | _files(run, r, "sample", "takes.parquet", "take_id", ids)
        for v in chosen[r]:
            v["real_sides"] = [s for s, key in (("A", "first_id"), ("B", "second_id")) if v[key] in anchors]
            fates.append(fate.of(v))
            made.append(
                cards.card(
                    r, v, files, votes.get(v["question_id"], []), fates[-1], clips, len(made) >= ON_A_PAGE
                )
            )
    lead = f"{_shown(chosen, sum(num_asked.values()))}. " + _HOW
    rest = made[ON_A_PAGE:]
    return join(
        element("p", lead, _class="lead"),
        element("noscript", element("p", f"Without scripts, the first {ON_A_PAGE}.", _class="note"))
        if rest
        else None,
        _filters(rounds, [v for r in rounds for v in chosen[r]], fates),
        element("div", *made[:ON_A_PAGE], _class="examples", id="verdict-cards", data_page=ON_A_PAGE),
        element("template", *rest, id="more-verdicts") if rest else None,
        element("p", "No verdict matches.", _class="lead nothing", hidden=True),
        _pager(),
    )  # fmt: skip


def _counted(r: int, verdicts: Iterable[Row], num_asked: dict[int, int]) -> Iterator[Row]:
    """Those that were asked to learn from, counted as they go by."""
    for v in verdicts:
        if v["kind"] != "known":
            num_asked[r] = num_asked.get(r, 0) + 1
            yield v


def draw(asked: Iterable[Row], most: int) -> list[Row]:
    """At most so many verdicts: in turn one of each kind and fifth of certainty, by a hash within each.

    A prefix of the list is the same kind of draw, so whatever is cut off for size is cut off evenly. Of many
    verdicts that go by, no more than may be drawn are kept.
    """
    strata: dict[tuple[str, int], list[tuple[bytes, int, Row]]] = {}
    for i, v in enumerate(asked):
        certainty = float(v["certainty"]) if is_number(v.get("certainty")) else 0.0
        place = min(NUM_BINS - 1, int(max(0.0, certainty) * NUM_BINS))
        queue = strata.setdefault((str(v["kind"]), place), [])
        queue.append((_lot(v), i, v))
        if len(queue) >= 2 * most:  # sorted now and then, not for each one
            queue.sort(key=_place)
            del queue[most:]
    queues = [sorted(strata[key], key=_place) for key in sorted(strata, key=lambda key: (-key[1], key[0]))]
    drawn: list[Row] = []
    turn = 0
    while len(drawn) < most and any(turn < len(queue) for queue in queues):
        drawn += [queue[turn][2] for queue in queues if turn < len(queue)]
        turn += 1
    return drawn[:most]


def _place(lot: tuple[bytes, int, Row]) -> tuple[bytes, int]:
    return lot[:2]


def _lot(v: Row) -> bytes:
    return sha256(str(v["question_id"]).encode()).digest()


def _shown(chosen: dict[int, list[Row]], of: int) -> str:
    num = sum(map(len, chosen.values()))
    if num == of:
        return f"All {num:,} verdicts"
    return f"{num:,} of {of:,} verdicts, at most {max(map(len, chosen.values()))} a round"


def _filters(rounds: Sequence[int], chosen: Sequence[Row], fates: Sequence[Fate]) -> Html:
    kinds = [kind for kind in KINDS if any(v["kind"] == kind for v in chosen)]
    won = {word for v in chosen for word in cards.winners(v)}
    winners = [word for word in cards.WINNERS if word in won]
    reasons = sorted({fate.reason for fate in fates if fate.state == "dropped"})
    states = {fate.state for fate in fates}
    became = [("", "anything"), *([("kept", "a pair")] if "kept" in states else [])]
    became += [("dropped", "dropped, any reason")] if reasons else []
    became += [(f"dropped {reason}", f"dropped: {reason.replace('_', ' ')}") for reason in reasons]
    became += [("none", "no pair")] if "none" in states else []
    return element(
        "div",
        choice("round", "Round", [("", "all"), *((str(r), str(r)) for r in rounds)]),
        choice("kind", "Question", [("", "any"), *((kind, KINDS[kind]) for kind in kinds)]),
        choice("winner", "Winner", [("", "any"), *((w, cards.WINNERS[w]) for w in winners)]),
        choice("fate", "Became", became),
        element(
            "fieldset",
            element("legend", "Certainty"),
            element("div", _end("least", 0), element("span", "to"), _end("most", 1)),
            _class="range",
        ),
        choice("order", "Order", _ORDERS),
        element(
            "label",
            element("span", "Search"),
            element("input", type="search", name="text", placeholder="prompt or reasoning", maxlength=200),
            _class="choice search",
        ),
        element("button", "Reset", type="button", _class="reset"),
        _class="switches", id="filters", role="group", aria_label="verdicts", hidden=True,
    )  # fmt: skip


def _end(name: str, value: int) -> Html:
    return element(
        "input",
        type="number",
        name=name,
        min=0,
        max=1,
        step=0.05,
        value=value,
        autocomplete="off",
        aria_label=f"{name} certainty",
    )


def _pager() -> Html:
    return element(
        "div",
        element("button", "‹ Previous", type="button", _class="previous"),
        element("span", _class="place", role="status"),
        element("button", "Next ›", type="button", _class="next"),
        _class="pager",
        id="pager",
        hidden=True,
    )


def _votes(run: Run, r: int, chosen: Sequence[Row]) -> dict[str, list[Row]]:
    """The votes on these questions."""
    columns = ("question_id", "swapped", "ballot", "answers", "reasoning", "abstention")
    found: dict[str, list[Row]] = {v["question_id"]: [] for v in chosen}
    for vote in run.rows_of(r, "label", "votes.parquet", columns, {"question_id": found}):
        found[vote["question_id"]].append(vote)
    return found


def _files(run: Run, r: int, stage: str, table: str, key: str, ids: Collection[str]) -> dict[str, Path]:
    """Clip file by id, of those ids that the table has."""
    folder = run.artefact(r, stage)
    if folder is None:
        return {}
    rows = run.rows_of(r, stage, table, (key, "file"), {key: ids})
    return {str(row[key]): folder / row["file"] for row in rows}

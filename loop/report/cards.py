"""One verdict as a card: its clips, what the judge thinks and says, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from loop.report.charts import number
from loop.report.collect import Row, is_number
from loop.report.embed import Clips
from loop.report.fates import Fate
from loop.report.judged import KINDS
from loop.report.markup import Html, element, join

MOST_VOTES = 8  # of a question
MOST_LETTERS = 1500  # of a reasoning
WINNERS = {"A": "A", "B": "B", "tie": "tie", "take": "the take", "real": "the real clip"}
_SIDES = {"first": "A", "second": "B", "tie": "tie"}
_TURNED = {"first": "second", "second": "first", "tie": "tie"}


def card(
    r: int,
    verdict: Row,
    files: Mapping[str, Path],
    votes: Sequence[Row],
    fate: Fate,
    clips: Clips,
    on_demand: bool,
) -> Html:
    """`verdict` has besides its columns real_sides: which of A and B are real clips.

    on_demand: the clips come when the script shows the card.
    """
    kind = KINDS.get(str(verdict["kind"]), str(verdict["kind"]))
    segment = verdict.get("segment")
    if segment is not None:
        kind += f" {segment}"
    certainty = float(verdict["certainty"]) if is_number(verdict.get("certainty")) else None
    sides = [
        element(
            "figure",
            clips.video(files.get(str(verdict[key])), f"{side}, {verdict.get('prompt')}", on_demand),
            element(
                "figcaption",
                element("b", side),
                element("span", "real clip" if side in verdict["real_sides"] else "take"),
            ),
            _class="shot won" if side in winners(verdict) else "shot",
        )
        for side, key in (("A", "first_id"), ("B", "second_id"))
    ]
    return element(
        "article",
        element(
            "header",
            element(
                "span",
                f"Round {r} · {kind}",
                _class="note",
                title=None if segment is None else "the judge saw this segment, here are the whole clips",
            ),
            element("span", fate.told, _class=f"fate {fate.state}"),
        ),
        element("p", verdict.get("prompt") or "", _class="prompt"),
        element("div", *sides, _class="duel"),
        element("p", _odds(verdict), _class="odds"),
        element("p", _told(verdict, certainty), _class="note"),
        element("p", fate.besides, _class="note") if fate.besides else None,
        _words(votes),
        _class="card verdict",
        data_round=r,
        data_kind=str(verdict["kind"]),
        data_winner=" ".join(winners(verdict)),
        data_fate=f"dropped {fate.reason}" if fate.state == "dropped" else fate.state,
        data_certainty="" if certainty is None else f"{certainty:.4f}",
    )


def winners(verdict: Row) -> list[str]:
    """Keys of WINNERS: the side, and for a take against a real clip which of them that is."""
    known = [
        (float(verdict[key]), side)
        for key, side in (("p_first", "A"), ("p_second", "B"))
        if is_number(verdict.get(key))
    ]
    if len(known) < 2:
        return []
    if known[0][0] == known[1][0]:
        return ["tie"]
    side = max(known)[1]
    if verdict["kind"] != "take_real":
        return [side]
    return [side, "real" if side in verdict["real_sides"] else "take"]


def _told(verdict: Row, certainty: float | None) -> str:
    told = [] if certainty is None else [f"certainty {number(certainty)}"]
    if told:
        told[0] += ", calibrated" if verdict.get("calibrated_for") else ", not calibrated"
    if is_number(verdict.get("flip_rate")):
        told.append(f"flip rate {number(float(verdict['flip_rate']))}")
    if is_number(verdict.get("num_votes")):
        told.append(f"{verdict['num_votes']} votes")
    if verdict.get("num_abstentions"):
        told.append(f"{verdict['num_abstentions']} abstained")
    return " · ".join(told)


def _odds(verdict: Row) -> Html:
    """P(A better), tie and P(B better) as one bar."""
    shares = [("A", verdict.get("p_first")), ("tie", verdict.get("p_tie")), ("B", verdict.get("p_second"))]
    return join(
        *(
            element(
                "span",
                f"{name} {100 * float(p):.0f} %" if float(p) >= 0.2 else "",
                title=f"P({name}) = {number(float(p))}",
                _class=f"odd {name.lower()}",
                style=f"flex-grow:{float(p):.3f}",
            )
            for name, p in shares
            if is_number(p) and float(p) > 0
        )
    )


def _words(votes: Sequence[Row]) -> Html | None:
    """The first reasoning in view, all votes one step behind."""
    if not votes:
        return None
    shown = [_vote(vote) for vote in votes[:MOST_VOTES]]
    if len(votes) > MOST_VOTES:
        shown.append(
            element("li", f"and {len(votes) - MOST_VOTES} more votes in votes.parquet", _class="note")
        )
    answers = " ".join(_short_answer(vote) for vote in votes[:MOST_VOTES])
    first = next((_reasoning(vote) for vote in votes if _reasoning(vote) and not vote.get("swapped")), "")
    return join(
        element("q", first, _class="first") if first else None,
        element(
            "details",
            element("summary", "All votes ", element("small", answers)),
            element("ol", *shown, _class="votes"),
        ),
    )


def _vote(vote: Row) -> Html:
    order = "B then A" if vote.get("swapped") else "A then B"
    answer = f"abstained: {str(vote['abstention']).replace('_', ' ')}" if vote.get("abstention") else ""
    by_dimension = _answers(vote)
    others = " · ".join(
        f"{name.replace('_', ' ')} {said}" for name, said in by_dimension.items() if name != "overall"
    )
    return element(
        "li",
        element("b", answer or by_dimension.get("overall", "–")),
        element("small", f"shown {order}" + (f" · {others}" if others else "")),
        element("q", _reasoning(vote)),
    )


def _short_answer(vote: Row) -> str:
    return "–" if vote.get("abstention") else _answers(vote).get("overall", "–")


def _answers(vote: Row) -> dict[str, str]:
    """A, B or tie by dimension; they are stored in the order shown."""
    stored = json.loads(vote["answers"]) if vote.get("answers") else {}
    turned = {name: _TURNED.get(said, said) if vote.get("swapped") else said for name, said in stored.items()}
    return {name: _SIDES.get(said, str(said)) for name, said in turned.items()}


def _reasoning(vote: Row) -> str:
    text = (vote.get("reasoning") or "").strip()
    if len(text) <= MOST_LETTERS:
        return text
    return f"{text[:MOST_LETTERS]}… ({len(text) - MOST_LETTERS:,} more letters in votes.parquet)"

"""What became of each question: a pair with its weight, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loop.report.charts import number
from loop.report.collect import Row, Run, is_number

Clips2 = frozenset[str]  # the two clips of a question or pair, in no order


@dataclass(frozen=True)
class Fate:
    state: Literal["kept", "dropped", "none"]
    told: str
    reason: str = ""  # of a drop, as the pair stage calls it
    besides: str = ""  # what the verdict alone would not make one expect of its pair


class Fates:
    """Looked up by question, of those that it is made for.

    A pair is found by its clips: a guided one rests on a question per segment.
    """

    def __init__(self, run: Run, r: int, asked: Sequence[Row]) -> None:
        self.paired = run.artefact(r, "pair") is not None
        clips = {str(v[key]) for v in asked for key in ("first_id", "second_id")}
        columns: tuple[str, ...] = ("winner_id", "loser_id", "weight", "source")
        pairs = run.rows_of(r, "pair", "pairs.parquet", columns, {"winner_id": clips})
        self.pairs: dict[Clips2, Row] = {frozenset((p["winner_id"], p["loser_id"])): p for p in pairs}
        self.by_question: dict[str, str] = {}
        self.by_clips: dict[Clips2, str] = {}
        columns = ("reason", "question_id", "first_id", "second_id")
        wanted = {"question_id": {v["question_id"] for v in asked}, "first_id": clips}
        # an older version wrote no such table
        for drop in run.rows_of(r, "pair", "dropped.parquet", columns, wanted):
            if drop["question_id"] is not None:
                self.by_question[drop["question_id"]] = drop["reason"]
            else:
                self.by_clips[frozenset((drop["first_id"], drop["second_id"]))] = drop["reason"]

    def of(self, verdict: Mapping[str, Any]) -> Fate:
        clips = frozenset((verdict["first_id"], verdict["second_id"]))
        reason = self.by_question.get(str(verdict["question_id"]))
        pair = self.pairs.get(clips)
        if pair is not None:
            first_wins = pair["winner_id"] == verdict["first_id"]
            weight = f", weight {number(float(pair['weight']))}" if is_number(pair.get("weight")) else ""
            besides = []
            if reason:  # a segment can be dropped while the others carry the pair
                besides.append(f"this segment was dropped: {_plain(reason)}")
            if first_wins != (float(verdict["p_first"] or 0) > float(verdict["p_second"] or 0)):
                besides.append(f"the pair's winner is {'A' if first_wins else 'B'}")
            return Fate("kept", f"pair{weight}", reason or "", "; ".join(besides))
        reason = reason or self.by_clips.get(clips)
        if reason is not None:
            return Fate("dropped", f"dropped: {_plain(reason)}", reason)
        return Fate("none", "no pair" if self.paired else "not paired yet")


def _plain(reason: str) -> str:
    return reason.replace("_", " ")

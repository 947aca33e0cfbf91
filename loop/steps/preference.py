"""A preference: one row that the update trains on, and what its certainty is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loop.steps.common import batches

PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("source", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("winner_id", pa.string()),
        ("loser_id", pa.string()),
        ("signs", pa.list_(pa.int8())),
        ("weight", pa.float64()),
        ("certainty", pa.float64()),
        ("question_id", pa.string()),
    ]
)
DROPS = pa.schema([("source", pa.string()), ("reason", pa.string()), ("count", pa.int64())])
DROPPED = pa.schema(
    [(name, pa.string()) for name in ("source", "reason", "question_id", "first_id", "second_id")]
)
_AT_ONCE = 2**12  # preferences in memory


@dataclass(frozen=True)
class Preference:
    """One training row: which clip wins, by latent frame (+1 winner better, 0 tie, −1 loser better).

    `worth` in [0, 1] is what the pair's certainty is worth as a weight; `question_id` is None where no judge
    was asked.
    """

    source: str
    prompt_id: str
    prompt: str
    winner_id: str
    loser_id: str
    signs: list[int]
    weight: float
    certainty: float
    question_id: str | None
    worth: float = 1.0

    @property
    def pair_id(self) -> str:
        return f"{self.source}-{self.winner_id}-over-{self.loser_id}"


class Drops(Counter[tuple[str, str]]):
    """How much was dropped, by (source, reason).

    A row of DROPPED for each question or pair of clips goes to `keep`, else to `rows`.
    """

    def __init__(self, keep: Callable[[dict[str, str | None]], None] | None = None) -> None:
        super().__init__()
        self.rows: list[dict[str, str | None]] = []
        self._keep = keep or self.rows.append

    def verdict(self, source: str, reason: str, v: Mapping[str, Any]) -> None:
        """One row of verdicts.parquet is dropped."""
        self._note(source, reason, v["question_id"], v["first_id"], v["second_id"])

    def clips(self, source: str, reason: str, first_id: str, second_id: str) -> None:
        """A pair of clips is dropped, whatever number of questions it rests on."""
        self._note(source, reason, None, first_id, second_id)

    def _note(self, source: str, reason: str, question_id: str | None, first_id: str, second_id: str) -> None:
        self[source, reason] += 1
        values = (source, reason, question_id, first_id, second_id)
        self._keep(dict(zip(DROPPED.names, values, strict=True)))


class Spool:
    """Preferences in a file, as columns, so that many can be put in order with few of them in memory."""

    _SCHEMA = PAIRS.append(pa.field("worth", pa.float64()))

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self, preferences: Iterable[Preference]) -> None:
        with pa.OSFile(str(self._path), "wb") as file, pa.ipc.new_file(file, self._SCHEMA) as writer:
            for some in batches(preferences, _AT_ONCE):
                rows = [{**vars(p), "pair_id": p.pair_id} for p in some]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=self._SCHEMA))

    def most_certain_first(self, source: str) -> Iterator[Preference]:
        """Those of a source by falling certainty, equal ones by their pair_id."""
        with pa.memory_map(str(self._path)) as file:
            table = pa.ipc.open_file(file).read_all()  # maps the file, copies nothing
            here = np.flatnonzero(pc.equal(table["source"], source).to_numpy())
            keys = table.select(["certainty", "pair_id"]).take(here)
            order = pc.sort_indices(keys, [("certainty", "descending"), ("pair_id", "ascending")])
            for some in batches(here[order.to_numpy()], _AT_ONCE):
                for row in table.take(some).drop_columns("pair_id").to_pylist():
                    yield Preference(**row)


def worth_of(certainty: float, calibrated: bool, supports: Literal[-1, 0, 1] = 1) -> float:
    """What a verdict's certainty is worth as a pair's weight, in [0, 1].

    Calibrated for its kind of question, the certainty is p = P(the preferred clip is better), and

        worth = 2p − 1    (p = ½, a coin, is worth 0; p = 1 is worth 1)

    which is the expected label E[y], y = ±1: with it the loss's first-order term is the one that labels drawn
    from p would have on average. Any other certainty is a margin in [0, 1] already, of votes or of mean
    scores (a rank gap), and is taken as it is. It is no probability, so weights of the two kinds do not share
    a scale.

    `supports`: 1 where the verdict says what the pair says; 0 (a tie) and −1 (the contrary) are worth 0,
    which a pair can have that a rule decides (real_wins: unless_contradicted).
    """
    if supports < 1:
        return 0.0
    return max(0.0, 2 * certainty - 1) if calibrated else certainty

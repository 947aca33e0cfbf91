"""Reads a user's judged pairs with reasoning (data.seed_reasoning), and says on which line what is wrong.

One JSON object a line: first and second (videos, relative to the file's folder), prompt, reasoning, and
answers: first, second or tie by dimension. Optional: seconds, [start, stop) of the part that is judged, and
source, the recording that the clips are of.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.errors import UserError
from reward.question import ANSWERS, Answer

_REQUIRED = ("first", "second", "prompt", "reasoning", "answers")
_OPTIONAL = ("seconds", "source")
_TAG = re.compile(r"</?[A-Za-z][^<>\s]*>|<\|[^<>\s]*\|>")  # what a chat template or the grammar could obey
_HEAD_BYTES = 2**20


@dataclass(frozen=True)
class SeedRow:
    """One judged pair. first, second: paths relative to the file's folder. source: "" where none is given.

    seconds: [start, stop) of the stored clips that was judged; None = all of them.
    """

    line: int
    first: str
    second: str
    prompt: str
    reasoning: str
    answers: Mapping[str, Answer]
    seconds: tuple[float, float] | None
    source: str


def read_seed_reasoning(file: str | Path, dimensions: Sequence[str]) -> list[SeedRow]:
    """The rows of a .jsonl file, in its order; blank lines are left out.

    `dimensions` are those of the judge: every row answers all of them and no other.
    Raises UserError naming file, line and key for a file that cannot be read, what is no JSON object, a key
    that is missing, unknown or of the wrong kind, a word that is no answer, a reasoning with tags, and a line
    that is there twice.
    """
    table = Path(file).expanduser()
    if table.suffix != ".jsonl":
        raise UserError(f"data.seed_reasoning: {table}: give a .jsonl, this ends in {table.suffix!r}")
    rows: list[SeedRow] = []
    seen: dict[tuple[Any, ...], int] = {}
    for number, text in enumerate(_text_of(table).split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{table}, line {number}"
        row = _row(where, number, _object(where, text), dimensions)
        said = (row.first, row.second, row.prompt, row.seconds, row.reasoning)
        if said in seen:
            raise UserError(f"{where}: says what line {seen[said]} says; remove one of them")
        seen[said] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{table}: no rows; write one JSON object a line with {', '.join(_REQUIRED)}")
    return rows


def seed_identity(file: str | Path) -> str:
    """A hash of the file and of its clips, for fingerprints: paths, sizes and each clip's first mebibyte.

    Raises UserError for a file that cannot be read. What else is wrong with it `read_seed_reasoning` says.
    """
    table = Path(file).expanduser()
    text = _text_of(table)
    digest = hashlib.sha256(text.encode())
    paths = set()
    for line in text.split("\n"):
        try:
            row = json.loads(line)
            paths |= {row[side] for side in ("first", "second") if isinstance(row[side], str)}
        except (ValueError, KeyError, TypeError):
            continue  # the reader names this line
    for path in sorted(paths):
        clip = table.parent / path
        if clip.is_file():
            with clip.open("rb") as stream:
                head = stream.read(_HEAD_BYTES)
            digest.update(f"{path}\0{clip.stat().st_size}\0".encode() + head)
    return digest.hexdigest()


def lopsided(rows: Sequence[SeedRow], dimension: str = "overall") -> str | None:
    """A warning where one side wins far more often than a coin would have it, else None.

    Rows are shown in the order in which they were judged, since a reasoning names its sides: where mostly the
    first clip wins, a judge learns to say first.
    """
    said = [answer for row in rows if (answer := row.answers.get(dimension)) in ("first", "second")]
    first = said.count("first")
    if len(said) < 8 or abs(first - len(said) / 2) <= 1.25 * len(said) ** 0.5:  # 2.5 standard deviations
        return None
    return (
        f"data.seed_reasoning: first wins {first} of {len(said)} decided pairs {dimension}, which teaches a "
        "judge to prefer a place; write about half of the pairs in the other order"
    )


def _text_of(table: Path) -> str:
    try:
        return table.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"data.seed_reasoning: {table}: no such file; give a .jsonl of judged pairs of clips"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.seed_reasoning: {table}: cannot read it ({error}); save it as UTF-8 text"
        ) from None


def _object(where: str, text: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{where}: key {name!r} is there twice; keep one")
        return dict(pairs)

    try:
        row = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error}); fix it there") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a line is one JSON object with the keys {', '.join(_REQUIRED)}")
    return row


def _row(where: str, line: int, row: dict[str, Any], dimensions: Sequence[str]) -> SeedRow:
    known = (*_REQUIRED, *_OPTIONAL)
    for name in row:
        if name not in known:
            raise UserError(
                f"{where}: unknown key {name!r}{_near(name, known)}; the keys are {', '.join(known)}"
            )
    texts = {name: _text(where, name, row) for name in ("first", "second", "prompt", "reasoning")}
    if tag := _TAG.search(texts["reasoning"]):
        raise UserError(
            f"{where}: key 'reasoning' holds the tag {tag[0]}, which a reply must not; write it in words"
        )
    source = row.get("source") or ""
    if not isinstance(source, str):
        raise UserError(
            f"{where}: key 'source' is {source!r}; write the name of the recording, or leave it out"
        )
    first, second = (posixpath.normpath(texts[side].replace("\\", "/")) for side in ("first", "second"))
    return SeedRow(
        line, first, second, texts["prompt"], texts["reasoning"], _answers(where, row, dimensions),
        _seconds(where, row.get("seconds")), source.strip(),
    )  # fmt: skip


def _text(where: str, name: str, row: Mapping[str, Any]) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        state = "is missing" if name not in row else f"is {value!r}"
        raise UserError(f"{where}: key {name!r} {state}; fill it in with text, or remove the line")
    return value.strip()


def _answers(where: str, row: Mapping[str, Any], dimensions: Sequence[str]) -> dict[str, Answer]:
    given = row.get("answers")
    if not isinstance(given, dict):
        example = ", ".join(f'"{name}": "first"' for name in dimensions)
        raise UserError(f"{where}: key 'answers' is no object by dimension; write {{{example}}}")
    for name, word in given.items():
        if name not in dimensions:
            raise UserError(
                f"{where}: key 'answers': the judge has no dimension {name!r}{_near(name, dimensions)}; it "
                f"has {', '.join(dimensions)}: remove the answer, or add it to judge.dimensions"
            )
        if word not in ANSWERS:
            raise UserError(f"{where}: key 'answers': {word!r} for {name}; write first, second or tie")
    missing = [name for name in dimensions if name not in given]
    if missing:
        raise UserError(
            f"{where}: key 'answers': no answer for {', '.join(missing)}; a reply answers every dimension of "
            "judge.dimensions: add it, or ask for fewer dimensions"
        )
    return {name: given[name] for name in dimensions}


def _seconds(where: str, given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    numbers = isinstance(given, list) and all(type(value) in (int, float) for value in given)
    if not numbers or len(given) != 2 or not 0 <= given[0] < given[1]:
        raise UserError(
            f"{where}: key 'seconds' is {given!r}; write [start, stop] with 0 ≤ start < stop, or leave it out"
        )
    return float(given[0]), float(given[1])


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""

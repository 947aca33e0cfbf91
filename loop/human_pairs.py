"""Reads pairs that people compared, and says on which line what is wrong.

The format is that of VideoGen-RewardBench: path_A and path_B (relative to the file's folder), prompt, and
who is better: Overall, or else VQ, MQ and TA (visual quality, motion quality, text alignment), each A, B or
same. Optional: category. Other columns are left alone.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loop.errors import UserError
from loop.metadata import read_lines

_REQUIRED = ("path_A", "path_B", "prompt")
_FOLDED = ("VQ", "MQ", "TA")
LABELS = ("A", "B", "same")


@dataclass(frozen=True)
class HumanPair:
    """Two clips of one prompt and which is better: A, B or same.

    where: the file's name and line, for messages. path_a, path_b: relative to the file's folder.
    """

    where: str
    path_a: str
    path_b: str
    prompt: str
    label: str
    category: str

    @property
    def id(self) -> str:
        text = "\x00".join((*sorted((self.path_a, self.path_b)), self.prompt))
        return f"human-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def read_human_pairs(file: str | Path, needs_category: bool = False) -> list[HumanPair]:
    """The pairs of a .csv or .parquet file, in its order.

    The label is the column Overall if there is one. Otherwise VQ, MQ and TA are folded by majority: the clip
    that more of the three name is better, and where both are named as often, it is `same`; a `same` is no
    vote for either side.
    Raises UserError naming file, line and column for a file that cannot be read, a missing column (category
    only with `needs_category`), an empty path or prompt, a label that is none of A, B and same, a pair of one
    clip with itself, and a pair that is listed twice.
    """
    table = Path(file).expanduser()
    if not table.is_file():
        raise UserError(
            f"data.human_pairs: {table}: no such file; give a .csv or .parquet with pairs of clips"
        )
    if table.suffix not in (".csv", ".parquet"):
        raise UserError(
            f"data.human_pairs: {table}: give a .csv or a .parquet, this ends in {table.suffix!r}"
        )

    def check(columns: Sequence[str]) -> None:
        _check_columns(table, columns, needs_category)

    lines = read_lines(table, check) if table.suffix == ".csv" else _parquet_rows(table, check)
    word = "line" if table.suffix == ".csv" else "row"
    pairs: dict[str, HumanPair] = {}
    for number, values in lines:
        pair = _pair(table, f"{word} {number}", values)
        if pair.id in pairs:
            raise UserError(
                f"{table}, {word} {number}: {pair.path_a} and {pair.path_b} were compared for this prompt in "
                f"{pairs[pair.id].where} already; give one line with what people agreed on"
            )
        pairs[pair.id] = pair
    if not pairs:
        raise UserError(
            f"{table}: no pairs; list one a line, under the columns {', '.join(_REQUIRED)}, Overall"
        )
    return list(pairs.values())


def clip_id_of(path: str) -> str:
    """The id of a human pair's clip, from its path in the file. Spellings of one path give one id."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(path).stem).strip("-")[:40]
    return f"human-{stem}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def _check_columns(table: Path, columns: Sequence[str], needs_category: bool) -> None:
    at = f"{table}, columns" if table.suffix == ".parquet" else f"{table}, line 1"
    for name in _REQUIRED:
        if name not in columns:
            raise UserError(
                f"{at}: no column {name!r}; the columns are {', '.join(_REQUIRED)}, and Overall or "
                f"{', '.join(_FOLDED)}"
            )
    if "Overall" not in columns:
        missing = [name for name in _FOLDED if name not in columns]
        if missing:
            raise UserError(
                f"{at}: no column 'Overall', nor {missing[0]!r}; say who is better (A, B or same) in a "
                f"column Overall, or in the columns {', '.join(_FOLDED)}"
            )
    if needs_category and "category" not in columns:
        raise UserError(
            f"{at}: no column 'category', by which data.categories chooses; add it, or leave that key out"
        )


def _pair(table: Path, line: str, values: Mapping[str, str]) -> HumanPair:
    where = f"{table}, {line}"
    for name in _REQUIRED:
        if not values[name]:
            raise UserError(f"{where}: column {name!r} is empty; fill it in or remove the line")
    one, other = (posixpath.normpath(values[name].replace("\\", "/")) for name in ("path_A", "path_B"))
    if one == other:
        raise UserError(
            f"{where}: path_A and path_B are the same file, {one}; put that right or remove the line"
        )
    columns = ("Overall",) if "Overall" in values else _FOLDED
    for name in columns:
        if values[name] not in LABELS:
            raise UserError(f"{where}: {values[name]!r} in column {name!r} is no label; write A, B or same")
    return HumanPair(
        f"{table.name}, {line}", one, other, values["prompt"], _fold([values[n] for n in columns]),
        values.get("category", ""),
    )  # fmt: skip


def _fold(labels: Sequence[str]) -> str:
    lead = labels.count("A") - labels.count("B")
    return "A" if lead > 0 else "B" if lead < 0 else "same"


def _parquet_rows(
    table: Path, check: Callable[[Sequence[str]], None]
) -> Iterator[tuple[int, dict[str, str]]]:
    """(row number from 1, value by column) of a Parquet file; what is missing is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = pq.read_table(table)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{table}: cannot read it as Parquet ({error}); write it again") from None
    check(content.column_names)
    names = [n for n in (*_REQUIRED, "Overall", *_FOLDED, "category") if n in content.column_names]
    for number, row in enumerate(content.select(names).to_pylist(), start=1):
        yield number, {name: "" if value is None else str(value).strip() for name, value in row.items()}

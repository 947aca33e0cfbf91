"""What several stage functions need: loading the generator, reading tables, naming clips."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from generator.models.base import VideoModel, load_model
from loop.distributed import device
from loop.held_out import readable_anchors
from loop.models import resolve_model
from loop.stages import StageContext
from reward.voting import DimensionVerdict, Verdict

_ROWS_A_GROUP = 2**14  # what a writer holds at most; a multiple of the next number
_ROWS_AT_ONCE = 2**12
T = TypeVar("T")


def load_generator(ctx: StageContext, update: Path | None) -> VideoModel:
    """The configured generator with the checkpoint of an update artefact, or the base if there is none."""
    config = ctx.config.generator
    config = config.model_copy(update={"model": resolve_model(config.model, "generator.model")})
    return load_model(config, update / "checkpoint" if update else None, device())


def iter_table(
    path: Path, columns: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a table as they are asked for, or these columns of the rows that have the values of `where`.

    A few thousand rows are in memory at a time. What is left out never becomes Python objects, which take ten
    times the room.
    """
    where = where or {}
    read = None if columns is None else list(dict.fromkeys([*columns, *where]))
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=read):
            for name, value in where.items():
                batch = batch.filter(pc.equal(batch.column(name), value))
            yield from (batch if columns is None else batch.select(list(columns))).to_pylist()


def read_table(
    path: Path, columns: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """All that `iter_table` gives."""
    return list(iter_table(path, columns, where))


def batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """`rows` in lists of `size`, the last one shorter; nothing more is held."""
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch


def neighbours(rows: Iterable[T], key: Callable[[T], Any]) -> Iterator[list[T]]:
    """Rows that follow each other with one key, as a list each."""
    for _, group in groupby(rows, key):
        yield list(group)


class TableWriter:
    """Rows as Parquet, as they come; the file appears, whole, at the end of the `with` block or not at all.

    In memory is at most one row group, as Arrow columns. The bytes are those of one write of all rows.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self._path, self._schema = path, schema
        self._temporary = path.with_suffix(".part")
        self._rows: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self._num_rows = 0  # in the batches
        self._num_groups = 0

    def __enter__(self) -> TableWriter:
        self._writer = pq.ParquetWriter(self._temporary, self._schema)
        return self

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self._rows.append(dict(row))
            if len(self._rows) == _ROWS_AT_ONCE:
                self._pack()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._pack()
            if self._num_rows or not self._num_groups:  # a table without rows has one empty group
                self._write_group()
        self._writer.close()
        if kind is None:
            os.replace(self._temporary, self._path)

    def _pack(self) -> None:
        self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._num_rows += len(self._rows)
        self._rows = []
        if self._num_rows == _ROWS_A_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        table = pa.Table.from_batches(self._batches, self._schema).combine_chunks()
        self._batches, self._num_rows = [], 0
        self._writer.write_table(table)
        self._num_groups += 1


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Rows as Parquet, whole or not at all."""
    with TableWriter(path, schema) as table:
        table.add(rows)


def write_json(path: Path, value: Any) -> None:
    """A value as JSON, whole or not at all; a number that could not be measured (NaN) becomes null."""
    temporary = path.with_suffix(".part")
    value = json.loads(json.dumps(value), parse_constant=lambda name: None)  # JSON has no NaN
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def clip_paths(ctx: StageContext, *artefacts: str) -> dict[str, Path]:
    """File of every take and clip of a human pair by id, and of every anchor that the stage may see."""
    paths: dict[str, Path] = {}
    for name in artefacts:
        folder = ctx.inputs[name]
        if name == "prepare":
            paths |= {
                row[f"clip_{s}"]: folder / row[f"file_{s}"] for row in human_pairs(folder) for s in "AB"
            }
            paths |= {row["anchor_id"]: folder / row["file"] for row in readable_anchors(ctx)}
        else:
            takes = read_table(folder / "takes.parquet", ("take_id", "file"))
            paths |= {row["take_id"]: folder / row["file"] for row in takes}
    return paths


def human_pairs(prepared: Path) -> list[dict[str, Any]]:
    """The rows of human_pairs.parquet, which prepare writes where data.human_pairs is set."""
    table = prepared / "human_pairs.parquet"
    return read_table(table) if table.exists() else []


def verdicts_of(rows: list[dict[str, Any]]) -> dict[str, Verdict]:
    """verdicts.parquet, one row a question and dimension, back to one Verdict a question."""
    by_question: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_question[row["question_id"]].append(row)
    fields = DimensionVerdict.__dataclass_fields__
    return {
        question_id: Verdict(
            question_id,
            of[0]["kind"],
            of[0]["segment"],
            "",
            {row["dimension"]: DimensionVerdict(**{f: row[f] for f in fields}) for row in of},
            of[0]["num_votes"],
            of[0]["num_abstentions"],
        )
        for question_id, of in by_question.items()
    }

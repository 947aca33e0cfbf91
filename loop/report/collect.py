"""Reads what a run directory holds: committed artefacts only, None or [] for what is not there yet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from loop.curves import read_curves
from loop.errors import UserError
from loop.past import ended_by_patience
from loop.stages import plan
from loop.status import read_status
from loop.store import MANIFEST, Store

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Row = dict[str, Any]
_ROWS_AT_ONCE = 2**12
_BUFFER = 2**20  # bytes of a column that are read at once


@dataclass(frozen=True)
class Run:
    """One campaign's directory. Cheap to make; tables are read when asked for."""

    path: Path
    config: dict[str, Any]  # resolved.json, {} if it was never written
    given: str  # campaign.yaml as given, "" if it was never written

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.name)

    @property
    def rounds_wanted(self) -> int | None:
        wanted = self.config.get("rounds")
        return int(wanted) if wanted is not None else None

    @property
    def rounds(self) -> list[int]:
        """Round numbers with at least one committed artefact, ascending."""
        return sorted({number for number, _, _ in self.artefacts()})

    def artefacts(self) -> Iterator[tuple[int, str, Path]]:
        """(round, stage, directory) of every committed artefact, in order."""
        for folder in sorted(self.path.glob("round-*")):
            number = folder.name.removeprefix("round-")
            if number.isdigit():
                for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
                    if not manifest.parent.name.startswith("."):
                        yield int(number), manifest.parent.name, manifest.parent

    def artefact(self, number: int, stage: str) -> Path | None:
        """The committed artefact's directory; the manifest's presence is the commit."""
        folder = self.path / f"round-{number:03d}" / stage
        return folder if (folder / MANIFEST).is_file() else None

    def json(self, number: int, stage: str, file: str) -> Row | None:
        """A JSON object of an artefact. Raises UserError naming the file if it does not parse."""
        folder = self.artefact(number, stage)
        return _read_json(folder / file) if folder and (folder / file).is_file() else None

    def rows(self, number: int, stage: str, file: str) -> list[Row]:
        """A JSON list of objects of an artefact. Raises UserError naming the file if it is none."""
        folder = self.artefact(number, stage)
        if not folder or not (folder / file).is_file():
            return []
        return _read_json(folder / file, list)

    def table(self, number: int, stage: str, file: str, columns: Sequence[str] | None = None) -> list[Row]:
        """All rows of a parquet table; columns that an older run lacks are left out of the rows."""
        return [row for batch in self.batches(number, stage, file, columns) for row in batch.to_pylist()]

    def batches(
        self, number: int, stage: str, file: str, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The same a few thousand rows at a time, so that memory does not grow with the table."""
        folder = self.artefact(number, stage)
        if folder is not None and (folder / file).is_file():
            yield from _read_parquet(folder / file, columns)

    def rows_of(
        self,
        number: int,
        stage: str,
        file: str,
        columns: Sequence[str],
        where: Mapping[str, Collection[Any]],
    ) -> Iterator[Row]:
        """The rows that have one of the values of `where` in at least one of its columns, read in batches.

        Only they become Python objects. Columns of `where` are among `columns`; one that an older run lacks
        finds nothing.
        """
        for batch in self.batches(number, stage, file, columns):
            found: set[int] = set()
            for name, wanted in where.items():
                if name in batch.schema.names:  # Arrow's own filters by a list of values import pandas
                    values = batch.column(name).to_pylist()
                    found |= {i for i, value in enumerate(values) if value in wanted}
            for i in sorted(found):
                yield batch.slice(i, 1).to_pylist()[0]

    def counts(self, number: int, stage: str, file: str, column: str) -> Counter[Any]:
        """How often each value stands in a column of a parquet table; empty where there is none such."""
        counted: Counter[Any] = Counter()
        for batch in self.batches(number, stage, file, (column,)):
            if column in batch.schema.names:
                counted.update(batch.column(column).to_pylist())
        return counted

    def num_rows(self, number: int, stage: str, file: str) -> int | None:
        """Rows of a parquet table, from its metadata alone; None where there is no such table."""
        folder = self.artefact(number, stage)
        if folder is None or not (folder / file).is_file():
            return None
        with _parquet(folder / file) as opened:
            return opened.metadata.num_rows

    def kept(self, number: int) -> bool | None:
        """Whether the round's generator was kept; the base is, an undecided round is None."""
        if number == 0:
            return True
        decision = self.json(number, "gate", "gate.json")
        return None if decision is None else bool(decision.get("keep"))

    def last_kept(self) -> int:
        return max((number for number in self.rounds if self.kept(number)), default=0)

    def next_stage(self) -> tuple[int, str] | None:
        """The first stage that is not committed yet; None when every wanted round is complete."""
        wanted = self.rounds_wanted
        steps = plan(wanted if wanted is not None else max(self.rounds, default=0))
        return next((step for step in steps if self.artefact(*step) is None), None)

    @cached_property
    def metrics(self) -> list[Row]:
        """All rounds' metric rows over all categories that have a finite value, with `kept`."""
        return [row for row in read_curves(self.path) if is_number(row.get("value"))]

    def metric(self, name: str, number: int) -> Row | None:
        """The all-categories row of one metric in one round, from the report part where parts differ."""
        rows = [row for row in self.metrics if row["metric"] == name and row["round"] == number]
        return min(rows, key=lambda row: row.get("part") != "report", default=None)

    @cached_property
    def by_category(self) -> list[Row]:
        """The rows of single categories that have a finite value."""
        rows = read_curves(self.path, category=None)
        return [row for row in rows if row["category"] and is_number(row.get("value"))]

    @cached_property
    def events(self) -> list[Row]:
        return Store(self.path).events()

    def seconds(self) -> dict[tuple[int, str], float]:
        """Wall time per (round, stage), of the attempt that committed it."""
        return {
            (event["round"], event["stage"]): float(event["seconds"])
            for event in self.events
            if event["event"] == "stage_committed"
        }

    def state(self) -> str:
        """done, running, failed, stopped or interrupted, as `retake status` has it; done once all is there.

        The report is written before the command has ended, which status would call running.
        """
        if self.next_stage() is None or ended_by_patience(self.events) is not None:
            return "done"
        return read_status(self.path).state if self.config else "interrupted"

    def versions(self) -> dict[str, str]:
        """Package versions as the manifests recorded them; several values where attempts differed."""
        seen: dict[str, list[str]] = {}
        for _, _, folder in self.artefacts():
            for package, version in _environment(folder / MANIFEST).items():
                if version is not None and str(version) not in seen.setdefault(str(package), []):
                    seen[str(package)].append(str(version))
        return {package: ", then ".join(values) for package, values in sorted(seen.items())}


def read_run(path: Path) -> Run:
    """Opens a run directory. Raises UserError if the folder is missing or is no run."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory; `retake run CONFIG --dir DIR` makes one")
    resolved, given = path / "resolved.json", path / "campaign.yaml"
    if not resolved.is_file() and not given.is_file() and not any(path.glob("round-*")):
        raise UserError(
            f"{path}: not a run directory (no resolved.json and no round-000); name one of runs/NAME"
        )
    return Run(
        path=path,
        config=_read_json(resolved) if resolved.is_file() else {},
        given=given.read_text(encoding="utf-8", errors="replace") if given.is_file() else "",
    )


def is_number(value: Any) -> TypeGuard[float]:
    """A finite int or float: null and NaN are neither drawn nor averaged."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _environment(manifest: Path) -> Row:
    """What a manifest says of packages, read as far as that: below it stands a line for every file."""
    lines: list[str] = []
    try:
        with open(manifest, encoding="utf-8") as file:
            for line in file:
                if lines or line.startswith(' "environment": {'):
                    lines.append(line)
                if lines and line.startswith(" }"):
                    return json.loads("{" + "".join(lines).rstrip(",\n") + "}")["environment"]
    except (OSError, ValueError):
        pass  # not as retake writes it
    return _read_json(manifest).get("environment", {})


def _read_json(path: Path, kind: type = dict) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); restore the file or redo its stage"
        ) from error
    if not isinstance(value, kind):
        raise UserError(
            f"{path}: holds a {type(value).__name__} where a {kind.__name__} belongs; redo its stage"
        )
    return value


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with _parquet(path) as file:
        names = file.schema_arrow.names
        known = None if columns is None else [c for c in columns if c in names]
        yield from file.iter_batches(_ROWS_AT_ONCE, columns=known)


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # ParquetFile reads this file alone; read_table would take the folder's names for partitions. With a
        # buffer a column is read piece by piece, else all of a row group's before its first row.
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: not readable as parquet ({error}); restore the file or redo its stage"
        ) from error

"""Reads metadata.csv, the list of a folder's clips, and says on which line what is wrong.

Columns: file_name and caption; optional source (cuts of one video share it), part and category.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loop.config import PARTS
from loop.errors import UserError

_REQUIRED = ("file_name", "caption")
_OPTIONAL = ("source", "part", "category")


@dataclass(frozen=True)
class Row:
    """One line of metadata.csv. source is the file name where the column is empty; part may be empty."""

    line: int
    file_name: str
    caption: str
    source: str
    part: str
    category: str


@dataclass(frozen=True)
class Skip:
    """A clip that is left out, and why. Skips are counted and reported, never silent."""

    file: str
    reason: str


def read_metadata(folder: str | Path) -> tuple[list[Row], list[Skip]]:
    """Rows of folder/metadata.csv, and a Skip for each whose video is not there.

    Raises UserError naming the file and line for a missing folder or file, a missing column, a row without
    file name or caption, a caption whose commas are not quoted, an unknown part, or a file listed twice.
    """
    folder = Path(folder)
    table = folder / "metadata.csv"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set data.anchors to a folder with clips and metadata.csv")
    if not table.is_file():
        raise UserError(
            f"{table}: no such file; list the clips there under the columns {','.join(_REQUIRED)}"
        )
    rows = [
        _row(table, line, values)
        for line, values in read_lines(table, lambda columns: _check_columns(table, columns))
    ]
    if not rows:
        raise UserError(f"{table}: no rows; list one clip a line under the columns {','.join(_REQUIRED)}")
    lines: dict[str, int] = {}
    for row in rows:
        if row.file_name in lines:
            first = lines[row.file_name]
            raise UserError(
                f"{table}, line {row.line}: {row.file_name} is already on line {first}; remove one"
            )
        lines[row.file_name] = row.line
    there: list[Row] = []
    skips: list[Skip] = []
    for row in rows:
        if (folder / row.file_name).is_file():
            there.append(row)
        else:
            skips.append(Skip(row.file_name, f"line {row.line}: no such video file"))
    return there, skips


def read_lines(table: Path, check: Callable[[Sequence[str]], None]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, value by column) of every row of a CSV file that is not blank; `check` sees its columns.

    Raises UserError naming the line for what is no CSV, a column that is there twice, or unquoted commas.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="", skipinitialspace=True, strict=True)
            columns = [(name or "").strip() for name in reader.fieldnames or []]
            check(columns)
            for name in columns:
                if columns.count(name) > 1:
                    raise UserError(f"{table}, line 1: column {name!r} is there twice; remove or rename one")
            reader.fieldnames = columns
            for values in reader:
                if values.get(""):
                    raise UserError(
                        f"{table}, line {reader.line_num}: more values than columns; "
                        'put a text with commas between double quotes: "like, this"'
                    )
                yield reader.line_num, {name: str(values[name]).strip() for name in columns if name}
    except csv.Error as error:
        raise UserError(
            f"{table}, line {reader.line_num}: not valid CSV ({error}); fix the quotes there"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: cannot read it ({error}); save it as UTF-8 text") from None


def _check_columns(table: Path, columns: Sequence[str]) -> None:
    known = (*_REQUIRED, *_OPTIONAL)
    for name in _REQUIRED:
        if name not in columns:
            raise UserError(f"{table}, line 1: no column {name!r}; the columns are {', '.join(known)}")


def _row(table: Path, line: int, values: Mapping[str, str]) -> Row:
    where = f"{table}, line {line}"
    for name in _REQUIRED:
        if not values[name]:
            what = "file name" if name == "file_name" else "caption"
            raise UserError(f"{where}: no {what}; fill in column {name!r} or remove the line")
    part = values.get("part", "")
    if part and part not in PARTS:
        raise UserError(f"{where}: unknown part {part!r}; it is one of {', '.join(PARTS)}, or empty")
    source = values.get("source", "") or values["file_name"]
    return Row(line, values["file_name"], values["caption"], source, part, values.get("category", ""))

"""Rows of a table as CSV, JSON or Parquet: on the terminal, or in a file that appears whole."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loop.errors import UserError
from loop.store import write_atomically

FORMATS = ("csv", "json", "parquet")
Row = Mapping[str, Any]


def finite(value: float | None) -> float | None:
    """None for what could not be measured (null, NaN, infinite): nothing averages it or writes it as JSON."""
    return value if value is not None and math.isfinite(value) else None


def choose_format(chosen: Mapping[str, bool], out: Path | None) -> str | None:
    """The one format that is asked for: by its option, else by the suffix of `out`; None = a table to read.

    Raises UserError for several, and for a suffix that is none of FORMATS.
    """
    options = [name for name in FORMATS if chosen.get(name)]
    if len(options) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in options)} exclude each other; give one")
    if options:
        return options[0]
    if out is None:
        return None
    suffix = out.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise UserError(f"--out {out}: give a name that ends in .csv, .json or .parquet, or --csv, --json, …")
    return suffix


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A header and a line for each row; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(value: Any) -> str:
    """Valid JSON. Raises ValueError where a NaN is left."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def write_text(out: Path, text: str) -> None:
    """Raises UserError where the folder is missing or `out` is a folder."""
    _check_place(out)
    write_atomically(out, text)


def write_parquet(out: Path, rows: Sequence[Row], schema: Any) -> None:
    """schema: a pyarrow one. Raises UserError as `write_text` does."""
    import pyarrow
    import pyarrow.parquet

    _check_place(out)
    temporary = out.with_name(f".{out.name}.new")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows], schema), temporary)
    os.replace(temporary, out)


def _check_place(out: Path) -> None:
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file")

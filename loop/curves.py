"""The curves of a campaign: one row per round and metric, read from the evaluate artefacts."""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from loop.decision import accepts
from loop.errors import UserError
from loop.store import MANIFEST, round_folders
from loop.table_files import finite

COLUMNS = ("round", "metric", "part", "category", "value", "low", "high", "num_clips", "judge")
NUMBERS = ("value", "low", "high")


def read_metrics(evaluate: Path) -> list[dict[str, Any]]:
    """Rows of one evaluate artefact's metrics.parquet, in stored order; [] if it wrote none.

    A value or bound that could not be measured (null, NaN, infinite) is None. Raises UserError naming a file
    that is damaged.
    """
    path = evaluate / "metrics.parquet"
    if not path.exists():
        return []
    import pyarrow.parquet  # slow to import, and `retake --help` comes through this file

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.read(columns=list(COLUMNS)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}); `retake verify` names damaged files") from error
    return [{**row, **{name: finite(row[name]) for name in NUMBERS}} for row in rows]


def evaluated_rounds(run_dir: Path) -> list[int]:
    """The rounds whose evaluation is committed, ascending."""
    return [k for k, folder in round_folders(run_dir) if (folder / "evaluate" / MANIFEST).exists()]


def read_curves(run_dir: Path, category: str | None = "") -> list[dict[str, Any]]:
    """Rows of all committed rounds with COLUMNS and `kept`: whether the round's update passed the gate.

    category: "" for the values over all prompts, None for every category.
    kept is None where the gate has not decided yet.
    """
    rows: list[dict[str, Any]] = []
    for number in evaluated_rounds(run_dir):
        folder = run_dir / f"round-{number:03d}"
        kept = is_kept(folder)
        for row in read_metrics(folder / "evaluate"):
            if category is None or row["category"] == category:
                rows.append({**row, "kept": kept})
    return rows


def select(
    rows: Sequence[dict[str, Any]], rounds: Collection[int], metrics: Collection[str]
) -> list[dict[str, Any]]:
    """The rows of these rounds and metrics, in order; an empty collection stands for all.

    Raises UserError for a round or a metric that no row has; the message lists those that there are.
    """
    check_known("round", rounds, {row["round"] for row in rows})
    check_known("metric", metrics, {row["metric"] for row in rows})
    return [
        row
        for row in rows
        if (not rounds or row["round"] in rounds) and (not metrics or row["metric"] in metrics)
    ]


def check_known(what: str, wanted: Collection[Any], known: Collection[Any]) -> None:
    """Raises UserError for the first of `wanted` that is not `known`. what: round or metric."""
    for one in wanted:
        if one not in known:
            there = [str(name) for name in sorted(known)]
            near = difflib.get_close_matches(str(one), there, n=1) if what == "metric" else []
            raise UserError(
                f"--{what} {one}: there is no such {what}"
                + (f"; did you mean {near[0]}?" if near else "")
                + f"; measured so far: {', '.join(there) or 'none'}"
            )


def line_of(row: dict[str, Any]) -> str:
    """A row for the terminal; "–" stands for what could not be measured."""
    value, low, high = ("–" if row[name] is None else f"{row[name]:.4f}" for name in NUMBERS)
    judge = f"  by {row['judge']}" if row["judge"] else ""
    of = f"  of {row['category']}" if row["category"] else ""
    return f"{row['round']:>5}  {row['metric']:<24} {value:>10}  [{low}, {high}]{of}{judge}"


def schema() -> Any:
    """The Arrow schema of rows with COLUMNS and `kept`."""
    import pyarrow as pa

    kinds = {"round": pa.int64(), "num_clips": pa.int64(), "kept": pa.bool_()}
    kinds |= {name: pa.float64() for name in NUMBERS}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in (*COLUMNS, "kept")])


def is_kept(folder: Path) -> bool | None:
    """Whether the update of a round's folder passed its gate; None where that is not decided yet."""
    if folder.name == "round-000":
        return True
    if not (folder / "gate" / "manifest.json").exists():
        return None
    return accepts(folder / "gate", "keep")

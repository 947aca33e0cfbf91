"""The curves of a campaign: one row per round and metric, read from the evaluate artefacts."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loop.store import round_folders

COLUMNS = ("round", "metric", "part", "category", "value", "low", "high", "num_clips", "judge")


def read_metrics(evaluate: Path) -> list[dict[str, Any]]:
    """Rows of one evaluate artefact's metrics.parquet, in stored order; [] if it wrote none."""
    path = evaluate / "metrics.parquet"
    if not path.exists():
        return []
    import pyarrow.parquet  # slow to import, and `retake --help` comes through this file

    return pyarrow.parquet.ParquetFile(path).read(columns=list(COLUMNS)).to_pylist()


def read_curves(run_dir: Path, category: str | None = "") -> list[dict[str, Any]]:
    """Rows of all committed rounds with COLUMNS and `kept`: whether the round's update passed the gate.

    category: "" for the values over all prompts, None for every category.
    kept is None where the gate has not decided yet.
    """
    rows: list[dict[str, Any]] = []
    for _, folder in round_folders(run_dir):
        if not (folder / "evaluate" / "manifest.json").exists():
            continue
        kept = _kept(folder)
        for row in read_metrics(folder / "evaluate"):
            if category is None or row["category"] == category:
                rows.append({**row, "kept": kept})
    return rows


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, "kept"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _kept(folder: Path) -> bool | None:
    if folder.name == "round-000":
        return True
    if not (folder / "gate" / "manifest.json").exists():
        return None
    return json.loads((folder / "gate" / "gate.json").read_text())["keep"]

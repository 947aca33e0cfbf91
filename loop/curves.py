"""The curves of a campaign: one row per round and metric, read from the evaluate artefacts."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("round", "metric", "part", "category", "value", "low", "high", "num_clips", "judge")


def read_metrics(evaluate: Path) -> list[dict[str, Any]]:
    """Rows of one evaluate artefact's metrics.parquet, in stored order; [] if it wrote none.

    What could not be measured is None, also where an older run has NaN, which JSON cannot hold.
    """
    path = evaluate / "metrics.parquet"
    if not path.exists():
        return []
    import pyarrow.parquet  # slow to import, and `retake --help` comes through this file

    rows = pyarrow.parquet.ParquetFile(path).read(columns=list(COLUMNS)).to_pylist()
    return [{name: None if _is_nan(value) else value for name, value in row.items()} for row in rows]


def read_curves(run_dir: Path, category: str | None = "") -> list[dict[str, Any]]:
    """Rows of all committed rounds with COLUMNS and `kept`: whether the round's update passed the gate.

    category: "" for the values over all prompts, None for every category.
    kept is None where the gate has not decided yet.
    """
    rows: list[dict[str, Any]] = []
    for folder in sorted(run_dir.glob("round-*")):
        if not (folder / "evaluate" / "manifest.json").exists():
            continue
        kept = _kept(folder)
        for row in read_metrics(folder / "evaluate"):
            if category is None or row["category"] == category:
                rows.append({**row, "kept": kept})
    return rows


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


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

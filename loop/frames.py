"""The tables of a run as tidy pandas frames: which columns each one has, in which order and of which type.

docs/analysing.md says what every column means; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet as pq

from loop.errors import UserError

# Columns that may be empty are nullable: a plain int64 or bool would become float or object.
INT, FLOAT, BOOL, TEXT, TIME = "Int64", "float64", "boolean", "string", "datetime64[ns, UTC]"
LIST = "object"

_ASKED = {
    "round": INT, "stage": TEXT, "question_id": TEXT, "kind": TEXT, "segment": INT, "prompt": TEXT,
    "first_id": TEXT, "second_id": TEXT,
}  # fmt: skip
COLUMNS: dict[str, dict[str, str]] = {
    "curves": {
        "round": INT, "metric": TEXT, "part": TEXT, "category": TEXT, "value": FLOAT, "low": FLOAT,
        "high": FLOAT, "num_clips": INT, "judge": TEXT, "kept": BOOL,
    },
    "takes": {
        "round": INT, "stage": TEXT, "take_id": TEXT, "kind": TEXT, "prompt_id": TEXT, "prompt": TEXT,
        "category": TEXT, "seed": INT, "anchor_id": TEXT, "eta": FLOAT, "pair_index": INT, "path": TEXT,
    },
    "scores": {
        "round": INT, "take_id": TEXT, "prompt_id": TEXT, "prompt": TEXT, "category": TEXT, "seed": INT,
        "kept": BOOL,
    },
    "votes": {
        **_ASKED, "swapped": BOOL, "ballot": INT, "seed": INT, "reasoning": TEXT, "log_probability": FLOAT,
        "abstention": TEXT, "shown": TEXT,
    },
    "verdicts": {
        **_ASKED, "metric": TEXT, "dimension": TEXT, "p_first": FLOAT, "p_second": FLOAT, "p_tie": FLOAT,
        "score": FLOAT, "mode": TEXT, "entropy": FLOAT, "flip_rate": FLOAT, "certainty": FLOAT,
        "calibrated_for": TEXT, "num_votes": INT, "num_abstentions": INT,
    },
    "pairs": {
        "round": INT, "pair_id": TEXT, "source": TEXT, "prompt_id": TEXT, "prompt": TEXT, "winner_id": TEXT,
        "loser_id": TEXT, "signs": LIST, "weight": FLOAT, "certainty": FLOAT, "question_id": TEXT,
    },
    "drops": {"round": INT, "source": TEXT, "reason": TEXT, "count": INT},
    "gates": {
        "round": INT, "stage": TEXT, "accepted": BOOL, "value": FLOAT, "low": FLOAT, "high": FLOAT,
        "num": INT, "alarms": TEXT, "reason": TEXT,
    },
    "stages": {
        "round": INT, "stage": TEXT, "state": TEXT, "seconds": FLOAT, "attempts": INT,
        "seconds_of_all": FLOAT, "devices": INT, "device_hours": FLOAT, "ended": TIME,
    },
}  # fmt: skip


def read_parquet(path: Path) -> pd.DataFrame:
    """One file. Raises UserError naming it if it cannot be read."""
    try:
        # a file alone: pandas would take the folder's names for partitions
        with pq.ParquetFile(path) as file:
            return file.read().to_pandas()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}); `retake verify` names damaged files") from error


def frame(name: str, parts: Sequence[pd.DataFrame | Mapping[str, Any]]) -> pd.DataFrame:
    """Frames or single rows as one frame with the columns of COLUMNS[name] first, then any others.

    A column that an older run lacks is empty. Without parts the frame is empty and has its columns.
    """
    columns = COLUMNS[name]
    frames = [part for part in parts if isinstance(part, pd.DataFrame) and len(part)]
    rows = [part for part in parts if not isinstance(part, pd.DataFrame)]
    if rows:
        frames.append(pd.DataFrame(rows))
    # all-empty columns have no type of their own yet, and must not decide that of the whole
    frames = [f.astype({c: columns[c] for c in f.columns if c in columns}) for f in frames]
    found = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    others = [column for column in found.columns if column not in columns]
    found = found.reindex(columns=[*columns, *others])
    return found.astype(columns)

"""What several stage functions need: loading the generator, reading tables, naming clips."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from generator.models.base import VideoModel, load_model
from loop.distributed import device
from loop.held_out import readable_anchors
from loop.models import resolve_model
from loop.stages import StageContext
from reward.voting import DimensionVerdict, Verdict


def load_generator(ctx: StageContext, update: Path | None) -> VideoModel:
    """The configured generator with the checkpoint of an update artefact, or the base if there is none."""
    config = ctx.config.generator
    config = config.model_copy(update={"model": resolve_model(config.model, "generator.model")})
    return load_model(config, update / "checkpoint" if update else None, device())


def read_table(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Rows as Parquet, whole or not at all."""
    temporary = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist([dict(r) for r in rows], schema=schema), temporary)
    os.replace(temporary, path)


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
            paths |= {row["take_id"]: folder / row["file"] for row in read_table(folder / "takes.parquet")}
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

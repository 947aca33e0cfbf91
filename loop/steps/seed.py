"""A user's reasoning data: stored by prepare as anchors are, read by train_judge as replies to imitate."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from generator.models.base import VideoModel
from loop.config import DataConfig
from loop.errors import UserError
from loop.held_out import plain
from loop.metadata import Skip
from loop.seed_reasoning import SeedRow, lopsided, read_seed_reasoning
from loop.stages import StageContext
from loop.steps.common import read_table, write_table
from loop.steps.questions import StoredClip
from loop.steps.stored import digest, store_clips
from reward.preferences import SftRow
from reward.question import Ask, ClipReader, Question, write_reply
from reward.sides import SegmentReader

SEED = pa.schema(
    [
        ("line", pa.int64()),
        ("prompt", pa.string()),
        ("reasoning", pa.string()),
        ("answers", pa.string()),
        ("first_id", pa.string()),
        ("second_id", pa.string()),
        ("file_first", pa.string()),
        ("file_second", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("source", pa.string()),
    ]
)

Rows = Sequence[Mapping[str, Any]]


def read_seed(ctx: StageContext) -> list[SeedRow]:
    """The rows of data.seed_reasoning, none without it; a lopsided file is warned about.

    Raises UserError as the reader does, and for seconds that a stored clip does not have.
    """
    given = ctx.config.data.seed_reasoning
    if given is None:
        return []
    rows = read_seed_reasoning(given, ctx.config.judge.dimensions)
    for row in rows:
        _frames(row, ctx.config.data)
    if warning := lopsided(rows):
        ctx.log.warning("%s", warning)
    return rows


def store_seed(ctx: StageContext, model: VideoModel, rows: Sequence[SeedRow], anchors: Rows) -> list[Skip]:
    """Stores the clips of `rows` and writes seed.parquet; `anchors` are rows of anchors.parquet.

    Returns a Skip for each row that would teach the judge a caption or source of a held-out part, or of which
    a clip is missing or cannot be used. Raises UserError naming the line for a clip that is an anchor of a
    held-out part, and where no row is left.
    """
    assert ctx.config.data.seed_reasoning is not None
    file = Path(ctx.config.data.seed_reasoning).expanduser()
    held = [anchor for anchor in anchors if anchor["part"] != "train"]
    skips, usable = [], []
    for row in rows:
        missing = [path for path in (row.first, row.second) if not (file.parent / path).is_file()]
        reason = "no such video file" if missing else _leak(row, held)
        if reason is None:
            usable.append(row)
        else:
            skips.append(
                Skip(missing[0] if missing else file.name, f"{file.name}, line {row.line}: {reason}")
            )
    (ctx.out / "seed").mkdir(exist_ok=True)
    wanted = {(path, f"seed/{_clip_id(path)}.mp4") for row in usable for path in (row.first, row.second)}
    stored, faults = store_clips(ctx, model, wanted, file.parent, "clips of the seed reasoning")
    by_hash = {anchor["sha256"]: anchor for anchor in held}
    hashes = {path: digest(ctx.out / name) for path, name in stored.items()}
    kept = []
    for row in usable:
        fault = next((path for path in (row.first, row.second) if path in faults), None)
        if fault is not None:
            skips.append(Skip(fault, f"{file.name}, line {row.line}: {faults[fault]}"))
            continue
        for path in (row.first, row.second):
            if (anchor := by_hash.get(hashes[path])) is not None:
                raise UserError(
                    f"{file}, line {row.line}: {path} is the anchor {anchor['anchor_id']} of part "
                    f"{anchor['part']}, by which judges are examined; remove the line, or give that anchor "
                    "the part train in metadata.csv"
                )
        kept.append(_as_stored(row, stored, _frames(row, ctx.config.data)))
    for skip in skips:
        ctx.log.warning("skipped %s: %s", skip.file, skip.reason)
    if not kept:
        raise UserError(f"{file}: none of its {len(rows)} rows can be used (the first: {skips[0].reason})")
    write_table(ctx.out / "seed.parquet", kept, SEED)
    return skips


def seed_rows(ctx: StageContext) -> list[SftRow]:
    """The replies of seed.parquet, each in the order that its reasoning speaks of; none without the file.

    Raises ValueError where judge.dimensions have changed since prepare.
    """
    table = ctx.inputs["prepare"] / "seed.parquet"
    return [_sft_row(ctx, row) for row in read_table(table)] if table.exists() else []


def _sft_row(ctx: StageContext, row: Mapping[str, Any]) -> SftRow:
    answers = json.loads(row["answers"])
    dimensions = ctx.config.judge.dimensions
    if set(dimensions) != set(answers):
        raise ValueError(
            f"data.seed_reasoning, line {row['line']}, was read for the dimensions {', '.join(answers)}, "
            f"judge.dimensions are now {', '.join(dimensions)}; choose another --dir"
        )
    start, stop = row["start"], row["stop"]
    readers: list[ClipReader] = []
    for side in ("first", "second"):
        clip = StoredClip(row[f"{side}_id"], ctx.inputs["prepare"] / row[f"file_{side}"])
        readers.append(clip if start is None else SegmentReader(clip, start, stop))
    question = Question(
        id=f"data.seed_reasoning, line {row['line']}",
        kind="seed",
        prompt=row["prompt"],
        first=readers[0],
        second=readers[1],
        dimensions=dimensions,
        segment=None if start is None else start // (stop - start),
        group=row["source"] or row["prompt"],
    )
    reply = write_reply(row["reasoning"], {name: answers[name] for name in dimensions})
    return SftRow(Ask(question, False, 0), reply)


def _leak(row: SeedRow, held: Rows) -> str | None:
    """Why a row would teach what a held-out part examines; None for one that does not."""
    for anchor in held:
        if plain(anchor["caption"]) == plain(row.prompt):
            return f"leaks a held-out prompt, a caption of part {anchor['part']}"
        if row.source and anchor["source"] == row.source:
            return f"leaks a held-out source, {row.source} of part {anchor['part']}"
    return None


def _frames(row: SeedRow, data: DataConfig) -> tuple[int | None, int | None]:
    """[start, stop) in frames of the stored clip. Raises UserError for a part that it does not have."""
    if row.seconds is None:
        return None, None
    start, stop = (round(second * data.clip.fps) for second in row.seconds)
    if stop > data.clip.num_frames or stop - start < 2:
        raise UserError(
            f"{data.seed_reasoning}, line {row.line}: key 'seconds' is frames {start} to {stop} at "
            f"{data.clip.fps:g} a second; give at least two of the {data.clip.num_frames} of data.clip"
        )
    return start, stop


def _as_stored(
    row: SeedRow, stored: Mapping[str, str], span: tuple[int | None, int | None]
) -> dict[str, Any]:
    return {
        "line": row.line,
        "prompt": row.prompt,
        "reasoning": row.reasoning,
        "answers": json.dumps(row.answers),
        "first_id": _clip_id(row.first),
        "second_id": _clip_id(row.second),
        "file_first": stored[row.first],
        "file_second": stored[row.second],
        "start": span[0],
        "stop": span[1],
        "source": row.source,
    }


def _clip_id(path: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(path).stem).strip("-")[:40]
    return f"seed-{stem}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"

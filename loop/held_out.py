"""The only door to anchors and prompts: a stage gets the rows of the parts that it may see, and no others.

What trains takes TrainingAnchor and TrainingPrompt, whose part is a literal: a row of a held-out part in
their place is a type error, and a training stage that asks for one gets HeldOutRead. Of the held-out parts
such a stage knows digests alone (HeldOut), by which it refuses what would leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

from loop.stages import StageContext

TRAIN = "train"
# by stage, the parts that it may read; a stage that is not listed may read the train part alone
READS: dict[str, tuple[str, ...]] = {
    "train_judge": (TRAIN,),
    "judge_gate": ("calibrate", "gate"),
    "sample": (TRAIN,),
    "label": (TRAIN,),
    "pair": (TRAIN,),
    "update": (TRAIN,),
    "evaluate": (TRAIN, "calibrate", "report"),
    "gate": ("gate",),
}


class _Anchor(TypedDict):
    anchor_id: str
    file: str  # below the prepare artefact
    caption: str
    source: str
    category: str
    sha256: str  # of the stored file


class _Prompt(TypedDict):
    prompt_id: str
    text: str
    category: str


class TrainingAnchor(_Anchor):
    part: Literal["train"]


class TrainingPrompt(_Prompt):
    part: Literal["train"]


class HeldOutAnchor(_Anchor):
    part: Literal["calibrate", "gate", "report"]


class HeldOutPrompt(_Prompt):
    part: Literal["calibrate", "gate", "report"]


AnyAnchor = TrainingAnchor | HeldOutAnchor
AnyPrompt = TrainingPrompt | HeldOutPrompt


class HeldOutRead(Exception):
    """A stage asked for a part that it must not see: a fault of the stage, never of the user."""


@dataclass(frozen=True)
class HeldOut:
    """What a stage that trains may know of the held-out parts: enough to refuse, nothing to learn from.

    prompts: the part by the digest of a prompt as `plain` has it; clips: the part by a stored file's sha256.
    """

    prompts: Mapping[str, str]
    clips: Mapping[str, str]

    def part_of(self, prompt: str) -> str | None:
        """The held-out part of a prompt, whatever its case and spaces; None for any other."""
        return self.prompts.get(_digest(prompt))

    @staticmethod
    def of(anchors: Iterable[Mapping[str, Any]], prompts: Iterable[Mapping[str, Any]]) -> HeldOut:
        """From rows of anchors.parquet and prompts.parquet, of all parts."""
        return HeldOut(
            {_digest(p["text"]): p["part"] for p in prompts if p["part"] != TRAIN},
            {a["sha256"]: a["part"] for a in anchors if a["part"] != TRAIN},
        )


def plain(text: str) -> str:
    """A prompt but for case and spaces: two that are equal in this are one."""
    return " ".join(text.casefold().split())


def training_anchors(ctx: StageContext) -> list[TrainingAnchor]:
    """Raises HeldOutRead for a stage that has no business with training."""
    return cast("list[TrainingAnchor]", _rows(ctx, "anchors", TRAIN))


def training_prompts(ctx: StageContext) -> list[TrainingPrompt]:
    """Raises HeldOutRead for a stage that has no business with training."""
    return cast("list[TrainingPrompt]", _rows(ctx, "prompts", TRAIN))


def held_out_anchors(ctx: StageContext, part: str) -> list[HeldOutAnchor]:
    """Raises HeldOutRead naming the stage, if it must not see that part."""
    assert part != TRAIN
    return cast("list[HeldOutAnchor]", _rows(ctx, "anchors", part))


def held_out_prompts(ctx: StageContext, part: str) -> list[HeldOutPrompt]:
    """Raises HeldOutRead naming the stage, if it must not see that part."""
    assert part != TRAIN
    return cast("list[HeldOutPrompt]", _rows(ctx, "prompts", part))


def anchors_of(ctx: StageContext, part: str) -> list[TrainingAnchor] | list[HeldOutAnchor]:
    """Those of one part, whichever it is. Raises HeldOutRead naming the stage, if it must not see it."""
    return training_anchors(ctx) if part == TRAIN else held_out_anchors(ctx, part)


def readable_anchors(ctx: StageContext) -> list[AnyAnchor]:
    """Those of every part that the stage may see."""
    return [row for part in readable_parts(ctx) for row in anchors_of(ctx, part)]


def readable_parts(ctx: StageContext) -> tuple[str, ...]:
    return READS.get(ctx.stage, (TRAIN,))


def held_out(ctx: StageContext) -> HeldOut:
    """For any stage: by what it recognises held-out prompts and clips."""
    return HeldOut.of(_table(ctx, "anchors"), _table(ctx, "prompts"))


def _rows(ctx: StageContext, table: str, part: str) -> list[dict[str, Any]]:
    if part not in readable_parts(ctx):
        raise HeldOutRead(
            f"stage {ctx.stage or 'without a name'} asked for {table} of part {part}, but it may read "
            f"{', '.join(readable_parts(ctx))} alone (loop/held_out.py)"
        )
    return [row for row in _table(ctx, table) if row["part"] == part]


def _table(ctx: StageContext, name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(ctx.inputs["prepare"] / f"{name}.parquet").to_pylist()


def _digest(prompt: str) -> str:
    return hashlib.sha256(plain(prompt).encode()).hexdigest()

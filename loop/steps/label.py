"""label: the judge compares takes with takes and with real anchors, blind, in both orders, several times."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, islice
from typing import Any

from loop.held_out import TrainingAnchor, training_anchors
from loop.stages import StageContext
from loop.steps.common import TableWriter, write_json
from loop.steps.judging import VERDICTS, VOTES, ask_in_shards, fold_all, open_judge, verdict_rows, vote_rows
from loop.steps.questions import StoredClip, make_question, segment_frames
from loop.steps.sample import draw, takes_together
from reward.calibration import load
from reward.certainty import apply
from reward.question import Question


def run(ctx: StageContext) -> None:
    num_questions = sum(1 for _ in plan_questions(ctx, ctx.round))
    questions = plan_questions(ctx, ctx.round)
    calibrators = load(ctx.inputs["judge_gate"] / "calibrators.json")
    num_votes = num_abstentions = 0
    judge = open_judge(ctx, ctx.inputs.get("judge"))
    try:
        with (
            TableWriter(ctx.out / "verdicts.parquet", VERDICTS) as all_verdicts,
            TableWriter(ctx.out / "votes.parquet", VOTES) as all_votes,
        ):
            shards = ask_in_shards(ctx, judge, questions, num_questions, ctx.config.label.voting, "votes")
            for some, votes in shards:
                verdicts = [apply(v, calibrators) for v in fold_all(some, votes)]
                all_votes.add(vote_rows(some, votes))
                all_verdicts.add(verdict_rows(some, verdicts))
                num_votes += len(votes)
                num_abstentions += sum(v.abstention is not None for v in votes)
        identity = judge.identity()
    finally:
        judge.close()
    write_json(
        ctx.out / "metrics.json",
        {"judge": identity, "num_votes": num_votes, "num_abstentions": num_abstentions},
    )


def plan_questions(ctx: StageContext, round_number: int) -> Iterator[Question]:
    """Fresh takes against each other and against an anchor of their caption; guided pairs segment by segment.

    Where real clips always win (`pair.real_wins`), no question is asked about them.
    The same questions with the same ids in the same order, which is that of the takes, whenever it is called
    for a round and its sample artefact.
    """
    by_caption: dict[str, list[TrainingAnchor]] = defaultdict(list)
    for anchor in training_anchors(ctx):
        by_caption[anchor["caption"]].append(anchor)
    facts = json.loads((ctx.inputs["prepare"] / "clip.json").read_text())
    scope = f"{ctx.config.seed}/{round_number}/label"

    def question(kind: str, take: dict[str, Any], other: StoredClip, segment: int | None = None) -> Question:
        span = (0, None) if segment is None else segment_frames(segment, facts["frames_per_segment"])
        clips = _clip(ctx, take, *span), replace(other, start=span[0], stop=span[1])
        return make_question(
            kind, take["prompt"], clips, ctx.config.judge.dimensions,
            scope=scope, group=take["prompt_id"], segment=segment,
        )  # fmt: skip

    for takes in takes_together(ctx.inputs["sample"]):
        if takes[0]["kind"] == "guided":
            one, other = takes
            for segment in sorted(set(facts["latent_segments"])) if ctx.config.label.segments else []:
                yield question("segment", one, _clip(ctx, other), segment)
            continue
        for one, other in islice(combinations(takes, 2), ctx.config.label.max_take_pairs_per_prompt):
            yield question("take_take", one, _clip(ctx, other))
        real = by_caption[takes[0]["prompt"]]
        asks_about_real = real and ctx.config.pair.real_wins != "always"
        for take in takes[: ctx.config.label.against_real] if asks_about_real else []:
            # a take that begins with an anchor's first frame is compared with that anchor
            [drawn] = draw(real, 1, round_number, ctx.config.seed, f"real {take['take_id']}")
            anchor = next((a for a in real if a["anchor_id"] == take["anchor_id"]), drawn)
            clip = StoredClip(anchor["anchor_id"], ctx.inputs["prepare"] / anchor["file"])
            yield question("take_real", take, clip)


def _clip(ctx: StageContext, take: dict[str, Any], start: int = 0, stop: int | None = None) -> StoredClip:
    return StoredClip(take["take_id"], ctx.inputs["sample"] / take["file"], start, stop)

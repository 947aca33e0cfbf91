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
    segments = _segments(ctx) if ctx.config.label.segments else {}
    scope = f"{ctx.config.seed}/{round_number}/label"

    def question(
        kind: str, take: dict[str, Any], one: StoredClip, other: StoredClip, segment: int | None = None
    ) -> Question:
        return make_question(
            kind, take["prompt"], (one, other), ctx.config.judge.dimensions,
            scope=scope, group=take["prompt_id"], segment=segment,
        )  # fmt: skip

    for takes in takes_together(ctx.inputs["sample"]):
        clips = [StoredClip(t["take_id"], ctx.inputs["sample"] / t["file"]) for t in takes]
        if takes[0]["kind"] == "guided":
            for segment, (start, stop) in segments.items():
                one, other = (replace(clip, start=start, stop=stop) for clip in clips)
                yield question("segment", takes[0], one, other, segment)
            continue
        pairs = islice(combinations(clips, 2), ctx.config.label.max_take_pairs_per_prompt)
        for one, other in pairs:
            yield question("take_take", takes[0], one, other)
        real = by_caption[takes[0]["prompt"]]
        asks_about_real = real and ctx.config.pair.real_wins != "always"
        num = ctx.config.label.against_real if asks_about_real else 0
        for take, clip in list(zip(takes, clips, strict=True))[:num]:
            # a take that begins with an anchor's first frame is compared with that anchor
            [drawn] = draw(real, 1, round_number, ctx.config.seed, f"real {take['take_id']}")
            anchor = next((a for a in real if a["anchor_id"] == take["anchor_id"]), drawn)
            real_clip = StoredClip(anchor["anchor_id"], ctx.inputs["prepare"] / anchor["file"])
            yield question("take_real", take, clip, real_clip)


def _segments(ctx: StageContext) -> dict[int, tuple[int, int]]:
    """The frames [start, stop) of every segment that a guided pair is judged on, by its number."""
    facts = json.loads((ctx.inputs["prepare"] / "clip.json").read_text())
    numbers = sorted(set(facts["latent_segments"]))
    return {number: segment_frames(number, facts["frames_per_segment"]) for number in numbers}

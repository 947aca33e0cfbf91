"""label: the judge compares takes with takes and with real anchors, blind, in both orders, several times."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import combinations
from typing import Any

from loop.held_out import TrainingAnchor, training_anchors
from loop.stages import StageContext
from loop.steps.common import TableWriter, clip_paths, read_table, write_json
from loop.steps.judging import VERDICTS, VOTES, ask_in_shards, fold_all, open_judge, verdict_rows, vote_rows
from loop.steps.questions import StoredClip, make_question, segment_frames
from loop.steps.sample import draw
from reward.calibration import load
from reward.certainty import apply
from reward.question import Question


def run(ctx: StageContext) -> None:
    questions = plan_questions(ctx, ctx.round)
    calibrators = load(ctx.inputs["judge_gate"] / "calibrators.json")
    num_votes = num_abstentions = 0
    judge = open_judge(ctx, ctx.inputs.get("judge"))
    try:
        with (
            TableWriter(ctx.out / "verdicts.parquet", VERDICTS) as all_verdicts,
            TableWriter(ctx.out / "votes.parquet", VOTES) as all_votes,
        ):
            for some, votes in ask_in_shards(ctx, judge, questions, ctx.config.label.voting, "votes"):
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


def plan_questions(ctx: StageContext, round_number: int) -> list[Question]:
    """Fresh takes against each other and against an anchor of their caption; guided pairs segment by segment.

    Where real clips always win (`pair.real_wins`), no question is asked about them.
    The same questions with the same ids whenever it is called for a round and its sample artefact.
    """
    takes = read_table(
        ctx.inputs["sample"] / "takes.parquet", ("take_id", "kind", "prompt_id", "prompt", "anchor_id")
    )
    paths = clip_paths(ctx, "prepare", "sample")
    scope = f"{ctx.config.seed}/{round_number}/label"
    dimensions, settings = ctx.config.judge.dimensions, ctx.config.label
    questions: list[Question] = []

    def add(
        kind: str, one: str, other: str, take: dict[str, Any], segment: int | None = None, n: int = 0
    ) -> None:
        start, stop = segment_frames(segment, n) if segment is not None else (0, None)
        clips = StoredClip(one, paths[one], start, stop), StoredClip(other, paths[other], start, stop)
        questions.append(
            make_question(
                kind, take["prompt"], clips, dimensions, scope=scope, group=take["prompt_id"], segment=segment
            )
        )

    fresh: dict[str, list[dict]] = defaultdict(list)
    guided: dict[str, list[dict]] = defaultdict(list)
    for take in takes:
        (fresh[take["prompt_id"]] if take["kind"] == "fresh" else guided[take["anchor_id"]]).append(take)
    by_caption: dict[str, list[TrainingAnchor]] = defaultdict(list)
    for anchor in training_anchors(ctx):
        by_caption[anchor["caption"]].append(anchor)
    for prompt_takes in fresh.values():
        for one, other in list(combinations(prompt_takes, 2))[: settings.max_take_pairs_per_prompt]:
            add("take_take", one["take_id"], other["take_id"], one)
        real = by_caption[prompt_takes[0]["prompt"]]
        asks_about_real = real and ctx.config.pair.real_wins != "always"
        for take in prompt_takes[: settings.against_real] if asks_about_real else []:
            # a take that begins with an anchor's first frame is compared with that anchor
            [anchor] = draw(real, 1, round_number, ctx.config.seed, f"real {take['take_id']}")
            add("take_real", take["take_id"], take["anchor_id"] or anchor["anchor_id"], take)
    if settings.segments:
        facts = json.loads((ctx.inputs["prepare"] / "clip.json").read_text())
        for one, other in guided.values():
            for segment in sorted(set(facts["latent_segments"])):
                add("segment", one["take_id"], other["take_id"], one, segment, facts["frames_per_segment"])
    return questions

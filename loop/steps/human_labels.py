"""Pairs that people compared and that train nothing: they are set aside to calibrate the judge on takes.

They also measure what the filter of verdicts reaches there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loop.config import CampaignConfig
from loop.held_out import HeldOut, plain
from loop.precision import filter_precision
from loop.stages import derive_seed
from loop.steps.questions import StoredClip, make_question
from reward.calibration import fit
from reward.certainty import apply
from reward.config import CertaintyConfig
from reward.question import Answer, Question
from reward.voting import Verdict

Rows = Sequence[Mapping[str, Any]]
_ANSWER: dict[str, Answer] = {"A": "first", "B": "second", "same": "tie"}
_MIRROR: dict[Answer, Answer] = {"first": "second", "second": "first", "tie": "tie"}


def set_aside(human: Rows, held: HeldOut, config: CampaignConfig) -> list[Mapping[str, Any]]:
    """The rows of human_pairs.parquet that calibrate `take_take`, the same in every round.

    With certainty.human_share > 0 they are all pairs of a prompt of the calibrate part, and those of that
    share of all other prompts, drawn by the prompt's hash. Never those of a prompt, or with a clip (byte for
    byte), of the gate or report part.
    """
    share = config.certainty.human_share
    if share == 0:
        return []
    untouched = {sha256 for sha256, part in held.clips.items() if part in ("gate", "report")}
    chosen = []
    for row in human:
        part = held.part_of(row["prompt"])
        drawn = derive_seed(config.seed, "human labels", plain(row["prompt"])) < share * 2**31
        if part in ("gate", "report") or untouched & {row["sha256_A"], row["sha256_B"]}:
            continue
        if part == "calibrate" or drawn:
            chosen.append(row)
    return chosen


def human_questions(
    rows: Rows, prepared: Path, config: CampaignConfig
) -> tuple[list[Question], list[dict[str, Answer]]]:
    """What the judge is asked about these pairs, and what people answered, in the question's order."""
    questions: list[Question] = []
    answers: list[dict[str, Answer]] = []
    for row in rows:
        clip_a, clip_b = (StoredClip(row[f"clip_{s}"], prepared / row[f"file_{s}"]) for s in "AB")
        question = make_question(
            "take_take", row["prompt"], (clip_a, clip_b), config.judge.dimensions,
            scope=f"{config.seed}/human", group=row["prompt_id"],
        )  # fmt: skip
        answer = _ANSWER[row["label"]]
        questions.append(question)
        answers.append({"overall": answer if question.first == clip_a else _MIRROR[answer]})
    return questions, answers


def filter_on_people(
    verdicts: Sequence[Verdict],
    truth: Sequence[Mapping[str, Answer]],
    groups: Sequence[str],
    limits: CertaintyConfig,
) -> dict[str, Any]:
    """What the filter reaches on pairs that people compared (loop/precision.py), ready for JSON.

    `uncalibrated` filters by margin and flip rate, which no label has touched. `calibrated` filters by
    certainties that are cross-fitted; null where there are too few labels for that.
    """
    plainly = [apply(v, {}) for v in verdicts]
    crossed = cross_fitted(verdicts, truth, groups, limits)
    return {
        "num_pairs": len(verdicts),
        "uncalibrated": filter_precision(plainly, truth, groups, limits),
        "calibrated": None if crossed is None else filter_precision(crossed, truth, groups, limits),
    }


def cross_fitted(
    verdicts: Sequence[Verdict],
    truth: Sequence[Mapping[str, Answer]],
    groups: Sequence[str],
    limits: CertaintyConfig,
) -> list[Verdict] | None:
    """The verdicts with certainties from a calibrator that did not see their labels.

    It is fitted on the other half of the groups (prompts), since on its own labels a calibrator looks better
    than it is; so it has half the labels of the one that a stage saves. None where a half has fewer than
    certainty.min_labels answered questions.
    """
    shuffled = sorted(set(groups), key=lambda group: derive_seed("half", group))
    half_of = {group: number % 2 for number, group in enumerate(shuffled)}
    certain = list(verdicts)
    for own in (0, 1):
        others = [i for i, g in enumerate(groups) if half_of[g] != own and verdicts[i].num_votes]
        if len(others) < limits.min_labels:
            return None
        found = fit(
            "take_take", [verdicts[i] for i in others], [truth[i] for i in others],
            limits.min_labels, limits.isotonic_labels, pooled=False,
        )  # fmt: skip
        for i, group in enumerate(groups):
            if half_of[group] == own:
                certain[i] = apply(verdicts[i], {"take_take": found})
    return certain

"""`retake judge`: what a judge says about two clips, asked blind in both orders."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loop.chosen_judge import KIND, ChosenJudge, GivenClip, ask_judge, how_shown, opened
from loop.errors import UserError
from reward.certainty import apply
from reward.question import ANSWERS, Question, Vote, neutralise
from reward.voting import Verdict, fold, make_asks


def judge_pair(
    chosen: ChosenJudge, first: Path, second: Path, prompt: str, ballots: int | None, whole: bool
) -> dict[str, Any]:
    """The verdict on two clips, ready for JSON; in it, first and second are the clips as given here.

    Equal clips and prompts give equal seeds, wherever the files lie. Raises UserError naming a clip that is
    missing, unreadable or too short, and JudgeFailed.
    """
    if not prompt.strip():
        raise UserError("--prompt is empty; give the text that both clips were made for")
    clips = [GivenClip(path, chosen.config.data.clip, whole) for path in (first, second)]
    for clip in clips:
        _check(clip)
    text = "\x00".join([prompt, *(hashlib.sha256(c.path.read_bytes()).hexdigest() for c in clips)])
    question = Question(
        f"given-{hashlib.sha256(text.encode()).hexdigest()[:20]}",
        KIND,
        prompt,
        clips[0],
        clips[1],
        chosen.judge.dimensions,
    )
    with opened(chosen) as judge:
        votes = ask_judge(judge, make_asks(question, chosen.ballots(ballots)))
    verdict = apply(fold(question, votes), chosen.calibrators)
    return {
        "judge": chosen.name,
        "first": str(first),
        "second": str(second),
        "prompt": prompt,
        "shown": how_shown(chosen, whole),
        "dimensions": {name: asdict(found) for name, found in verdict.dimensions.items()},
        "num_votes": verdict.num_votes,
        "num_abstentions": verdict.num_abstentions,
        "abstentions": count_abstentions(votes),
        "reasoning": _reasons(verdict, votes),
        "unread": _unread(votes),
    }


def count_abstentions(votes: Sequence[Vote]) -> dict[str, int]:
    """How many votes abstained, by reason, the most frequent first."""
    return dict(Counter(v.abstention for v in votes if v.abstention is not None).most_common())


def write_out(found: dict[str, Any]) -> list[str]:
    """What `judge_pair` found, as lines to read."""
    lines = [
        f"judge:  {found['judge']}",
        f"first:  {found['first']}",
        f"second: {found['second']}",
        f"prompt: {neutralise(found['prompt'])}",  # it may hold what a terminal obeys
        f"shown:  {found['shown']}",
        "",
        f"{'dimension':<16}  first  second    tie  verdict  flips  certainty",
    ]
    for name, of in found["dimensions"].items():
        flips = "–" if of["flip_rate"] is None else f"{of['flip_rate']:.2f}"
        lines.append(
            f"{name:<16}  {of['p_first']:5.2f}  {of['p_second']:6.2f}  {of['p_tie']:5.2f}  "
            f"{of['mode'] or 'none':<7}  {flips:>5}  {of['certainty']:9.3f}"
        )
    kinds = {of["calibrated_for"] for of in found["dimensions"].values()} - {None}
    lines.append(
        "certainty is the probability that the preferred clip is better, calibrated for "
        f"{kinds.pop()} answers"
        if kinds
        else "certainty is the vote margin times the share of ballots that agree with themselves; "
        "nothing calibrates it"
    )
    lines += ["", f"{found['num_votes']} votes, {_abstained(found)}"]
    for reason in found["reasoning"]:
        order = ", shown in the other order: its first is our second" if reason["swapped"] else ""
        lines.append(f"a vote for {reason['answer']}{order}: {neutralise(reason['reasoning'])}")
    if found["unread"] is not None:
        unread = found["unread"]
        lines.append(f"a reply that is an abstention, {unread['abstention']}: {neutralise(unread['reply'])}")
    return lines


def _abstained(found: dict[str, Any]) -> str:
    reasons = ", ".join(f"{n} {reason}" for reason, n in found["abstentions"].items())
    return f"{found['num_abstentions']} abstentions" + (f" ({reasons})" if reasons else "")


def _reasons(verdict: Verdict, votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """One vote for each answer that was given overall (or in the first dimension), unswapped ones first."""
    dimension = "overall" if "overall" in verdict.dimensions else next(iter(verdict.dimensions))
    reasons = []
    for answer in ANSWERS:
        for vote in sorted(votes, key=lambda v: v.swapped):
            said = vote.unswapped()
            if said is not None and said[dimension] == answer:
                reasons.append(
                    {
                        "dimension": dimension,
                        "answer": answer,
                        "swapped": vote.swapped,
                        "reasoning": vote.reasoning,
                    }
                )
                break
    return reasons


def _unread(votes: Sequence[Vote]) -> dict[str, str] | None:
    """The first abstention that says something, cut short: what the judge wrote in place of an answer."""
    for vote in votes:
        if vote.abstention is not None and vote.reasoning.strip():
            return {"abstention": vote.abstention, "reply": vote.reasoning[:400]}
    return None


def _check(clip: GivenClip) -> None:
    try:
        clip()
    except ValueError as error:
        hint = "" if clip.whole else "; or show whole clips, with --whole"
        raise UserError(f"{error}{hint if 'is shorter than' in str(error) else ''}") from None

"""The forms of reply that judges are asked for and read in: `judge.reply`. Imports no torch.

Our own grammar can be learnt (reward/train.py). The others are what published reward models were trained to
write; both kinds of judge, in process and behind a server, read them here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from reward.question import Answer, Layout, Reply, parse_reply, split_blocks


class HasReply(Protocol):
    """What is needed of a JudgeConfig, which itself needs this file."""

    @property
    def reply(self) -> str: ...


@dataclass(frozen=True)
class ReplyFormat:
    """One form of reply.

    instructions: what a model is told where `judge.instructions` is left out.
    layout: of the message that it was trained on.
    dimensions: those that it can answer; None = whatever it is asked for.
    parse: a Reply from the text and the dimensions asked for. One clear answer in each, or an abstention.
    """

    instructions: str
    layout: Layout
    dimensions: tuple[str, ...] | None
    parse: Callable[[str, Iterable[str]], Reply]


def format_of(config: HasReply) -> ReplyFormat:
    return FORMATS[config.reply]


_RETAKE = """\
Two videos, first and second, were made for the same prompt. Each is given as frames in order.
Say what each video shows and what is wrong with it, then compare them in every dimension:
text_alignment (does it show what the prompt says), motion (is it smooth, possible, and is there as much \
of it as the prompt asks for), visual_quality (is every frame sharp, clean and stable) and overall.
Answer first, second or tie. Be conservative: where you see no clear difference, answer tie.
Reply in exactly this form and write nothing else:
<reasoning>your reasoning</reasoning><answer>{dimensions}</answer>"""

# Our words for the task that CodeGoat24's UnifiedReward-Think was trained on, with its names and its form
_UNIFIED_REWARD = """\
The frames are those of two videos that were generated for one caption: the first half of them is Video 1, \
the second half Video 2. Say which video is better.
Caption: {prompt}
Rate both videos from 1 to 10 in each of these, with a short reason:
1. Semantic consistency: does the video show what the caption says?
2. Temporal coherence: is the motion smooth and does one frame follow from the other?
3. Authenticity: is it realistic, down to the details?
You may add up to two more that matter here. Then add up the scores of each video.
Reply in exactly this form and write nothing else:
<think>
1. Semantic consistency:
    Video 1 (9/10) - reason;
    Video 2 (7/10) - reason
2. Temporal coherence:
    Video 1 (8/10) - reason;
    Video 2 (6/10) - reason
3. Authenticity:
    Video 1 (7/10) - reason;
    Video 2 (5/10) - reason
Total score:
Video 1: 9+8+7=24
Video 2: 7+6+5=18
</think>
<answer>Video 1 is better</answer>
The scores are examples. The answer is either Video 1 is better or Video 2 is better."""

_THINK_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SENTENCES: dict[str, Answer] = {
    "Video 1 is better": "first",
    "Video 2 is better": "second",
    "Both videos are equally good": "tie",  # UnifiedReward's sentence where its prompt allows for ties
}
# what our dimensions are called there; the match is ours
_RATED: Mapping[str, str] = {
    "text_alignment": "Semantic consistency",
    "motion": "Temporal coherence",
    "visual_quality": "Authenticity",
}
_BLOCK_END = re.compile(r"^[ \t]*(\d+\.[ \t]|Total score)", re.MULTILINE)
_SCORE = re.compile(r"\bVideo[ \t]+([12])[ \t]*\([ \t]*(\d+(?:\.\d+)?)[ \t]*/[ \t]*10[ \t]*\)")


def parse_unified_reward(text: str, dimensions: Iterable[str]) -> Reply:
    """Read `<think>…</think><answer>Video 1 is better</answer>`; nothing may stand outside the two blocks.

    "overall" is the answer's sentence, whatever the scores add up to. The other dimensions compare the two
    scores of their criterion, equal ones are a tie; a criterion that is missing, that comes twice, or that
    does not have one score of each video from 1 to 10, makes the reply an abstention.
    """
    found = split_blocks(text, _THINK_TAGS)
    if isinstance(found, Reply):
        return found
    reasoning, sentence = found
    overall = _SENTENCES.get(" ".join(sentence.split()))
    if overall is None:
        return Reply(None, reasoning, "unknown_word" if sentence.strip() else "malformed_answer")
    answers: dict[str, Answer] = {}
    for dimension in dimensions:
        if dimension == "overall":
            answers[dimension] = overall
            continue
        headings = list(re.finditer(_heading(dimension), reasoning))
        if len(headings) != 1:
            return Reply(None, reasoning, "duplicate_dimension" if headings else "missing_dimension")
        compared = _compare_scores(_BLOCK_END.split(reasoning[headings[0].end() :], maxsplit=1)[0])
        if compared is None:
            return Reply(None, reasoning, "malformed_answer")
        answers[dimension] = compared
    return Reply(answers, reasoning, None)


def _heading(dimension: str) -> str:
    return rf"(?m)^[ \t]*(\d+\.)?[ \t]*{_RATED[dimension]}[ \t]*:"


def _compare_scores(block: str) -> Answer | None:
    """Which video has the higher score in one criterion's block; None unless each has one from 1 to 10."""
    found = [(video, float(score)) for video, score in _SCORE.findall(block)]
    scores = dict(found)
    if len(found) != 2 or len(scores) != 2 or not all(1 <= score <= 10 for score in scores.values()):
        return None
    if scores["1"] == scores["2"]:
        return "tie"
    return "first" if scores["1"] > scores["2"] else "second"


FORMATS: dict[str, ReplyFormat] = {
    "retake": ReplyFormat(_RETAKE, Layout(), None, parse_reply),
    "unified_reward": ReplyFormat(
        _UNIFIED_REWARD,
        Layout(("Video 1", "Video 2"), frames_first=True),
        (*_RATED, "overall"),
        parse_unified_reward,
    ),
}

"""What a judge is asked, how the question is worded, and the strict grammar of the reply.

No model lives here: a Question carries lazy readers of frames, `build_message` turns it into text and
images, `write_reply` and `parse_reply` are the two ends of our own reply grammar. What published models write
instead is in reward/replies.py.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Answer = Literal["first", "second", "tie"]
ANSWERS: tuple[Answer, ...] = ("first", "second", "tie")
_MIRROR: dict[Answer, Answer] = {"first": "second", "second": "first", "tie": "tie"}

Kind = Literal["known", "take_take", "take_real", "segment", "seed"]

Abstention = Literal[
    "empty",  # no text at all
    "withheld",  # a server kept the reply back: its content filter, or a refusal
    "unanswered",  # people did not answer this question (judge.type human)
    "truncated",  # the token limit came before the end of the reply
    "missing_tag",  # one of the four tags is not there
    "duplicate_tag",  # one of the four tags is there twice
    "tag_order",  # the tags are there, in another order
    "text_outside",  # text before, between or after the two blocks
    "malformed_answer",  # the answer block is not a list of "dimension: word"
    "unknown_dimension",
    "duplicate_dimension",
    "missing_dimension",
    "unknown_word",  # an answer other than first, second or tie
]
_TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Frames:
    """Decoded frames: pixels uint8 [T, H, W, 3] in RGB, fps in frames per second."""

    pixels: np.ndarray
    fps: float


class ClipReader(Protocol):
    """A lazy clip. Two readers with the same `key` return the same frames, so caches may use it."""

    @property
    def key(self) -> str: ...

    def __call__(self) -> Frames: ...


@dataclass(frozen=True)
class Question:
    """One comparison of two clips.

    `id` decides the seeds of its votes, `group` is the unit for bootstraps (clips of one source share it).
    `segment` is the number of the segment that both readers return; None means whole clips.
    """

    id: str
    kind: str
    prompt: str
    first: ClipReader
    second: ClipReader
    dimensions: tuple[str, ...]
    segment: int | None = None
    group: str = ""


@dataclass(frozen=True)
class Ask:
    """A question in one order with one seed. `swapped` shows the question's second clip first."""

    question: Question
    swapped: bool
    ballot: int

    @property
    def seed(self) -> int:
        """63 bits that depend on nothing but the question's id, the order and the ballot."""
        text = f"{self.question.id}\x00{int(self.swapped)}\x00{self.ballot}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    @property
    def shown(self) -> tuple[ClipReader, ClipReader]:
        """The two readers in the order shown."""
        first, second = self.question.first, self.question.second
        return (second, first) if self.swapped else (first, second)


@dataclass(frozen=True)
class Vote:
    """One reply. `answers` are in the order SHOWN; exactly one of `answers` and `abstention` is None.

    `log_probability` is the sum of the reply's token log-probabilities in nats, where the judge knows it.
    `shown` says which frames the judge saw (reward.frames.shown_json), where there were any.
    """

    question_id: str
    swapped: bool
    ballot: int
    seed: int
    answers: dict[str, Answer] | None
    reasoning: str
    log_probability: float | None = None
    abstention: str | None = None
    shown: str | None = None

    def __post_init__(self) -> None:
        assert (self.answers is None) != (self.abstention is None), "a vote answers or abstains"

    def unswapped(self) -> dict[str, Answer] | None:
        """The answers in the question's own order."""
        if self.answers is None or not self.swapped:
            return self.answers
        return mirrored(self.answers)


@dataclass(frozen=True)
class Reply:
    """What `parse_reply` found: `answers`, or the reason why there are none."""

    answers: dict[str, Answer] | None
    reasoning: str
    abstention: Abstention | None


def mirrored(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """The same answers for the two clips in the other order."""
    return {dimension: _MIRROR[answer] for dimension, answer in answers.items()}


def vote_of(ask: Ask, reply: Reply, log_probability: float | None = None, shown: str | None = None) -> Vote:
    """The vote that a parsed reply casts."""
    return Vote(
        question_id=ask.question.id,
        swapped=ask.swapped,
        ballot=ask.ballot,
        seed=ask.seed,
        answers=reply.answers,
        reasoning=reply.reasoning,
        log_probability=log_probability,
        abstention=reply.abstention,
        shown=shown,
    )


def pick_frames(num_available: int, num_shown: int) -> list[int]:
    """Indices of at most `num_shown` frames, evenly spaced, first and last included."""
    if num_available < 1:
        raise ValueError("a clip without frames cannot be shown; check the reader")
    if num_available <= num_shown:
        return list(range(num_available))
    if num_shown == 1:
        return [num_available // 2]
    return [round(i * (num_available - 1) / (num_shown - 1)) for i in range(num_shown)]


def segment_spans(num_frames: int, num_segments: int) -> list[tuple[int, int]]:
    """[start, stop) frame ranges of equal segments; the sizes differ by at most one frame."""
    edges = [round(i * num_frames / num_segments) for i in range(num_segments + 1)]
    return list(itertools.pairwise(edges))


# ≮ and ≯ are what NFKC makes of a bracket and a combining stroke, which some tokenizers take apart again
_BRACKETS = str.maketrans({"<": "‹", ">": "›", "≮": "‹", "≯": "›"})
_CONTROL_WORD = re.compile(r"\[(/?[A-Z][A-Z0-9_]*)\]")  # Mistral's way of writing its special tokens


def neutralise(text: str, special_tokens: Iterable[str] = ()) -> str:
    """A caption as harmless data: no tags, no special tokens, no control characters, one line.

    `special_tokens` are the tokenizer's own; those written with angle brackets, or in capitals between
    square brackets, are covered anyway.
    """
    # compatibility forms first, or a full-width bracket would become a real one inside the tokenizer
    text = unicodedata.normalize("NFKC", text)
    text = "".join(" " if unicodedata.category(c).startswith("C") else c for c in text)
    text = " ".join(text.translate(_BRACKETS).split())
    tokens = sorted({token for token in special_tokens if token.strip()}, key=len, reverse=True)
    while any(token in text for token in tokens):  # what is cut out may leave another one behind
        for token in tokens:
            text = text.replace(token, " ")
        text = " ".join(text.split())
    return _CONTROL_WORD.sub(r"(\1)", text)


@dataclass(frozen=True)
class Layout:
    """How a message is laid out: what it calls the two clips, and whether the frames come before the text."""

    names: tuple[str, str] = ("first", "second")
    frames_first: bool = False


_ROLES = ("user", "assistant", "system", "human", "prompt", "caption")


def caption_of(ask: Ask, layout: Layout, special_tokens: Iterable[str]) -> str:
    """The question's prompt as it stands in a message: neutral, and without a colon after what heads a clip,
    a caption or a turn there, since not every template keeps headings apart by lines."""
    names = "|".join(re.escape(name) for name in (*layout.names, *_ROLES))
    return re.sub(rf"\b({names})\s*:", r"\1", neutralise(ask.question.prompt, special_tokens), flags=re.I)


def build_message(
    ask: Ask,
    instructions: str,
    times: tuple[Sequence[float], Sequence[float]],
    *,
    time_stamps: bool,
    special_tokens: Iterable[str] = (),
    layout: Layout = Layout(),
) -> list[dict[str, Any]]:
    """Chat content for the two clips in the order shown: text blocks and `{"type": "image"}` blocks.

    `times` are those of the frames shown of each clip, in seconds; the n-th image block stands for the
    n-th of them. The caption stands where `instructions` say {prompt}, else on a line of its own after them.
    Nothing here depends on where a clip came from.
    """
    caption = caption_of(ask, layout, special_tokens)
    if "{prompt}" in instructions:
        text = instructions.replace("{prompt}", caption)
    else:
        text = f"{instructions}\nprompt: {caption}\n" if instructions else f"prompt: {caption}\n"
    told: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if not layout.frames_first:
        return [*told, *_frames(times, layout.names, time_stamps)]
    # two equal halves need no heading; times that start again, or halves that differ, do
    headed = time_stamps or len(times[0]) != len(times[1])
    return [*_frames(times, layout.names if headed else None, time_stamps), *told]


def _frames(
    times: tuple[Sequence[float], Sequence[float]], names: tuple[str, str] | None, time_stamps: bool
) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for clip, seconds in enumerate(times):
        if names is not None:
            content.append({"type": "text", "text": f"{names[clip]}:\n"})
        for second in seconds:
            if time_stamps:
                content.append({"type": "text", "text": f"{second:.1f}s"})
            content.append({"type": "image"})
        if names is not None:
            content.append({"type": "text", "text": "\n"})
    return content


def write_reply(reasoning: str, answers: Mapping[str, Answer]) -> str:
    """The grammar's only form, e.g. `<reasoning>…</reasoning><answer>motion: first overall: tie</answer>`."""
    assert not any(tag in reasoning for tag in _TAGS), "reasoning must not contain the grammar's tags"
    listed = " ".join(f"{dimension}: {answer}" for dimension, answer in answers.items())
    return f"<reasoning>{reasoning}</reasoning><answer>{listed}</answer>"


def parse_reply(text: str, dimensions: Iterable[str]) -> Reply:
    """Read a reply. White space is free, everything else is strict; whatever deviates is an abstention."""
    found = split_blocks(text, _TAGS)
    if isinstance(found, Reply):
        return found
    reasoning, listed = found
    answers, abstention = _parse_answers(listed, tuple(dimensions))
    return Reply(answers, reasoning, abstention)


def split_blocks(text: str, tags: tuple[str, str, str, str]) -> tuple[str, str] | Reply:
    """The insides of a reply's two blocks, or the abstention where it has not these four `tags` alone."""
    text = text.strip()
    if not text:
        return Reply(None, "", "empty")
    counts = [text.count(tag) for tag in tags]
    if 0 in counts:
        return Reply(None, text, "missing_tag")
    if counts != [1, 1, 1, 1]:
        return Reply(None, text, "duplicate_tag")
    places = [text.index(tag) for tag in tags]
    if places != sorted(places):
        return Reply(None, text, "tag_order")
    before = text[: places[0]]
    reasoning = text[places[0] + len(tags[0]) : places[1]].strip()
    between = text[places[1] + len(tags[1]) : places[2]]
    answer = text[places[2] + len(tags[2]) : places[3]]
    after = text[places[3] + len(tags[3]) :]
    if before.strip() or between.strip() or after.strip():
        return Reply(None, reasoning, "text_outside")
    return reasoning, answer


_ENTRY = re.compile(r"\s*([^\s:]+)\s*:\s*([^\s:]+)(?=\s|$)")


def _parse_answers(
    listed: str, dimensions: tuple[str, ...]
) -> tuple[dict[str, Answer] | None, Abstention | None]:
    found: dict[str, Answer] = {}
    place = 0
    listed = listed.rstrip()
    while place < len(listed):
        entry = _ENTRY.match(listed, place)
        if entry is None:
            return None, "malformed_answer"
        dimension, word = entry.groups()
        if dimension not in dimensions:
            return None, "unknown_dimension"
        if dimension in found:
            return None, "duplicate_dimension"
        if word not in ANSWERS:
            return None, "unknown_word"
        found[dimension] = word
        place = entry.end()
    if len(found) < len(dimensions):
        return None, "missing_dimension"
    return {dimension: found[dimension] for dimension in dimensions}, None


def answers_json(answers: Mapping[str, Answer] | None) -> str | None:
    """Answers as they are kept in a table of votes; None stays None."""
    return None if answers is None else json.dumps(dict(answers), separators=(",", ":"))

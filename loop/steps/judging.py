"""Asking a judge many questions in shards that survive a kill, and the tables of what it said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from loop.held_out import anchors_of
from loop.models import with_weights
from loop.stages import StageContext
from loop.steps.common import batches, write_table
from loop.steps.questions import StoredClip
from reward.config import JudgeConfig, VotingConfig
from reward.judge import Judge, check_votes, load_judge
from reward.question import Ask, Question, Vote, answers_json
from reward.sides import Source
from reward.stopping import vote_in_waves
from reward.voting import Verdict, fold

VOTES = pa.schema(
    [
        ("question_id", pa.string()),
        ("kind", pa.string()),
        ("segment", pa.int64()),
        ("prompt", pa.string()),
        ("first_id", pa.string()),
        ("second_id", pa.string()),
        ("swapped", pa.bool_()),
        ("ballot", pa.int64()),
        ("seed", pa.int64()),
        ("answers", pa.string()),
        ("reasoning", pa.string()),
        ("log_probability", pa.float64()),
        ("abstention", pa.string()),
        ("shown", pa.string()),  # frames of each clip, JSON: reward.frames.shown_json
    ]
)
VERDICTS = pa.schema(
    [
        ("question_id", pa.string()),
        ("kind", pa.string()),
        ("segment", pa.int64()),
        ("prompt", pa.string()),
        ("first_id", pa.string()),
        ("second_id", pa.string()),
        ("dimension", pa.string()),
        ("p_first", pa.float64()),
        ("p_second", pa.float64()),
        ("p_tie", pa.float64()),
        ("score", pa.float64()),
        ("mode", pa.string()),
        ("entropy", pa.float64()),
        ("flip_rate", pa.float64()),
        ("certainty", pa.float64()),
        ("calibrated_for", pa.string()),
        ("num_votes", pa.int64()),
        ("num_abstentions", pa.int64()),
    ]
)
_SHARD = 64  # questions: a kill costs at most this many


def judge_config(ctx: StageContext, trained: Path | None) -> JudgeConfig:
    """The configured judge with the weights of a train_judge artefact, or its own if there is none."""
    return _with_log(ctx, with_weights(ctx.config.judge, trained), "vllm")


def _with_log(ctx: StageContext, config: JudgeConfig, name: str) -> JudgeConfig:
    if config.vllm is not None and config.vllm.log is None:
        # it stays if the stage fails, and goes with the scratch folder if not
        log = str(ctx.scratch / f"{name}.log")
        return config.model_copy(update={"vllm": config.vllm.model_copy(update={"log": log})})
    return config


def open_judge(ctx: StageContext, trained: Path | None) -> Judge:
    return load_judge(judge_config(ctx, trained))


def open_held_out_judge(ctx: StageContext) -> Judge:
    """The judge that no training of this campaign touches: held_out_judge, or judge as it came."""
    return load_judge(_with_log(ctx, with_weights(ctx.config.measuring_judge), "held-out-vllm"))


def has_held_out_judge_in_force(ctx: StageContext, trained: Path | None) -> bool:
    """Whether the judge of open_judge is that of open_held_out_judge, as it is before any training."""
    return with_weights(ctx.config.judge, trained) == with_weights(ctx.config.measuring_judge)


def ask(
    ctx: StageContext,
    judge: Judge,
    questions: Sequence[Question],
    voting: VotingConfig,
    name: str,
    dimension: str = "overall",
) -> list[Vote]:
    """All votes on `questions`, in order. Finished shards are kept in scratch and not asked again.

    `dimension` decides when a question stops, where `voting` lets it stop early. What is averaged over
    questions must not: give it VotingConfig(num_ballots=…).
    """
    shards = ask_in_shards(ctx, judge, questions, len(questions), voting, name, dimension)
    return [vote for _, votes in shards for vote in votes]


def ask_in_shards(
    ctx: StageContext,
    judge: Judge,
    questions: Iterable[Question],
    num_questions: int,
    voting: VotingConfig,
    name: str,
    dimension: str = "overall",
) -> Iterator[tuple[Sequence[Question], list[Vote]]]:
    """The same, a few questions with their votes at a time, for more of them than memory should hold."""

    def vote(asks: Sequence[Ask]) -> list[Vote]:
        return check_votes(asks, judge.vote(asks), type(judge).__name__)

    ctx.progress.start(num_questions, "questions")
    reasons: set[str] = set()
    first_reply, num_votes, has_answer = "", 0, False
    for number, shard in enumerate(batches(questions, _SHARD)):
        path = ctx.scratch / f"{name}-{number * _SHARD:06d}.json"
        if path.exists():
            votes = [Vote(**row) for row in json.loads(path.read_text())]
        else:
            votes = vote_in_waves(shard, voting, vote, dimension)
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps([vars(v) for v in votes]))
            os.replace(temporary, path)
        first_reply = first_reply if num_votes else votes[0].reasoning[:200]
        num_votes += len(votes)
        has_answer = has_answer or any(vote.answers is not None for vote in votes)
        reasons |= {f"{vote.abstention}" for vote in votes}
        yield shard, votes
        ctx.progress.advance(len(shard))
    if num_votes and not has_answer:
        ctx.log.warning(
            "the judge gave no answer in %d votes (%s), so that %s knows nothing; its first reply: %r",
            num_votes, ", ".join(sorted(reasons)), name, first_reply,
        )  # fmt: skip


class JudgeAtHand:
    """Judges of train_judge artefacts, one at a time. The one that was asked last stays open: the next
    questions are often for it, and loading weights or starting a server costs more than many questions."""

    def __init__(self, ctx: StageContext) -> None:
        self.ctx = ctx
        self._judge: Judge | None = None
        self._config: JudgeConfig | None = None

    def answer(
        self, trained: Path | None, asked: Sequence[Question], voting: VotingConfig, name: str
    ) -> list[Verdict]:
        """Verdicts of an artefact's judge, or the configured one's. Nothing asked, none is loaded."""
        if not asked:
            return []
        return fold_all(asked, ask(self.ctx, self._open(trained), asked, voting, name))

    def _open(self, trained: Path | None) -> Judge:
        config = judge_config(self.ctx, trained)
        if self._judge is None or config != self._config:
            self.close()
            self._judge, self._config = load_judge(config), config
        return self._judge

    def close(self) -> None:
        if self._judge is not None:
            self._judge.close()
        self._judge = None

    def __enter__(self) -> JudgeAtHand:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def fold_all(questions: Sequence[Question], votes: Sequence[Vote]) -> list[Verdict]:
    """One verdict a question, in the questions' order."""
    by_question: dict[str, list[Vote]] = {q.id: [] for q in questions}
    for vote in votes:
        by_question[vote.question_id].append(vote)
    return [fold(q, by_question[q.id]) for q in questions]


def write_votes(path: Path, questions: Sequence[Question], votes: Sequence[Vote]) -> None:
    write_table(path, vote_rows(questions, votes), VOTES)


def vote_rows(questions: Sequence[Question], votes: Sequence[Vote]) -> Iterator[dict[str, Any]]:
    """Rows of VOTES."""
    about = {q.id: _about(q) for q in questions}
    for vote in votes:
        yield {**about[vote.question_id], **vars(vote), "answers": answers_json(vote.answers)}


def write_verdicts(path: Path, questions: Sequence[Question], verdicts: Sequence[Verdict]) -> None:
    write_table(path, verdict_rows(questions, verdicts), VERDICTS)


def verdict_rows(questions: Sequence[Question], verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    """Rows of VERDICTS."""
    for q, v in zip(questions, verdicts, strict=True):
        about = _about(q)
        counts = {"num_votes": v.num_votes, "num_abstentions": v.num_abstentions}
        for name, found in v.dimensions.items():
            yield {**about, "dimension": name, **vars(found), **counts}


def _about(question: Question) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "kind": question.kind,
        "segment": question.segment,
        "prompt": question.prompt,
        "first_id": clip_id(question.first),
        "second_id": clip_id(question.second),
    }


def clip_id(reader: Any) -> str:
    """The take or anchor behind a reader; a corrupted anchor has no id, its key's last part names it."""
    return reader.clip_id if isinstance(reader, StoredClip) else Path(reader.key).name


def known_sources(ctx: StageContext, part: str) -> list[Source]:
    """The stored anchors of one part as material for known answers. Raises HeldOutRead as anchors_of does."""
    folder = ctx.inputs["prepare"]
    return [
        Source(
            row["anchor_id"],
            row["caption"],
            row["source"],
            StoredClip(row["anchor_id"], folder / row["file"]),
        )
        for row in anchors_of(ctx, part)
    ]


def accuracy(
    verdicts: Sequence[Verdict], answers: Sequence[Mapping[str, str]], dimension: str
) -> list[float]:
    """1 where the most frequent answer (ties count as one) is the known one, else 0. Without votes: 0."""
    return [
        float(v.dimensions[dimension].mode == truth[dimension])
        for v, truth in zip(verdicts, answers, strict=True)
    ]


def scores_of(mine: str, questions: Sequence[Question], verdicts: Sequence[Verdict]) -> list[float]:
    """How the clip whose id begins with `mine` fares in each question: 1 it wins, 0 it loses, ties half.

    NaN for a question without a vote, which says nothing of either clip.
    """
    scores = []
    for q, v in zip(questions, verdicts, strict=True):
        score = v.dimensions["overall"].score if v.num_votes else float("nan")
        scores.append(score if clip_id(q.first).startswith(mine) else 1 - score)
    return scores


def flip_rate(verdicts: Sequence[Verdict], dimension: str) -> float:
    """The share of ballots whose two orders contradict each other; NaN without a complete ballot."""
    rates = [r for v in verdicts if (r := v.dimensions[dimension].flip_rate) is not None]
    return sum(rates) / len(rates) if rates else float("nan")

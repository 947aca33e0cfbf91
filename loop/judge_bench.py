"""`retake judge-bench`: how often a judge agrees with people. It measures; nothing here trains or tunes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loop.chosen_judge import KIND, ChosenJudge, GivenClip, ask_judge, how_shown, identity_of, opened
from loop.compared import Compared, Comparison, SkippedLine, read_comparisons
from loop.errors import UserError
from loop.judge_pair import count_abstentions
from loop.progress import Progress
from loop.statistics import Interval, bootstrap, bootstrap_mean
from loop.steps.common import write_json
from loop.steps.judging import fold_all, write_verdicts, write_votes
from reward.certainty import apply, brier_skill, ece
from reward.judge import Judge
from reward.question import Answer, Question, Vote
from reward.voting import DimensionVerdict, Verdict, make_asks

_SHARD = 16  # pairs: what Ctrl-C costs at most
_SAME = 1e-9  # scores are sums of shares


@dataclass(frozen=True)
class Measured:
    """One pair in one dimension: what people and the judge say, and the pair's prompt."""

    people: Answer
    found: DimensionVerdict
    num_votes: int
    prompt: str


def run_bench(
    file: Path,
    chosen: ChosenJudge,
    *,
    ballots: int | None,
    limit: int | None,
    tie_threshold: float | None,
    dimensions: Mapping[str, str] | None,
    whole: bool,
    out: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """The agreement of a judge with the people of a file (loop/compared.py), ready for JSON.

    limit: lines to measure on, from the first. tie_threshold: see `is_right`. With `out`, votes.parquet and
    verdicts.parquet are written there, and a call that was stopped goes on from its shards; another judge,
    file, limit, number of ballots or way of showing clips needs another folder.
    Raises UserError as read_comparisons and choose_judge do, for a folder that holds other votes, and if no
    line is left to measure on; JudgeFailed.
    """
    compared = read_comparisons(file, chosen.judge.dimensions, dimensions)
    rows = compared.comparisons[:limit]
    questions = {_id(row): _question(row, file.parent, chosen, whole) for row in rows}
    num_ballots = chosen.ballots(ballots)
    with _folder(out) as folder, opened(chosen) as judge:
        identity = identity_of(judge)
        _claim(folder, [identity, num_ballots, how_shown(chosen, whole), *map(_mark, questions.values())])
        votes, unusable = _ask(judge, list(questions.values()), num_ballots, folder, progress)
        asked = [q for q in questions.values() if q.id not in unusable]
        verdicts = {v.question_id: apply(v, chosen.calibrators) for v in fold_all(asked, votes)}
        if out is not None:
            write_votes(folder / "votes.parquet", asked, votes)
            write_verdicts(folder / "verdicts.parquet", asked, [verdicts[q.id] for q in asked])
    skipped = compared.skipped + [
        SkippedLine(row.line, *unusable[_id(row)]) for row in rows if _id(row) in unusable
    ]
    measured = [row for row in rows if _id(row) not in unusable]
    if not measured:
        raise UserError(f"{file}: no pair is left to measure on; {_counted(skipped)}")
    report = {
        "judge": chosen.name,
        "identity": identity,
        "file": file.name,
        "layout": compared.layout,
        "columns": dict(compared.dimensions),
        "shown": how_shown(chosen, whole),
        "num_lines": len(measured),
        "num_pairs": len(asked),
        "num_prompts": len({row.prompt for row in measured}),
        "num_ballots": num_ballots,
        "num_votes": sum(v.num_votes for v in verdicts.values()),
        "votes_per_decision": sum(v.num_votes for v in verdicts.values()) / len(asked),
        "num_failed": sum(v.num_votes == 0 for v in verdicts.values()),
        "abstentions": count_abstentions(votes),
        "tie_threshold": tie_threshold,
        "skipped": _counts(skipped),
        "skipped_lines": [asdict(s) for s in sorted(skipped, key=lambda s: s.line)],
        "dimensions": measure(compared, measured, verdicts, tie_threshold, chosen.config.seed),
    }
    if out is not None:
        write_json(out / "agreement.json", report)
    return report


def is_right(people: Answer, found: DimensionVerdict, num_votes: int, tie_threshold: float | None) -> bool:
    """Whether the judge answers first, second or tie as people do. Without any vote it is wrong.

    Without a threshold its answer is its most frequent one (draws between first and second are ties); with
    one it is a tie where the score lies within `tie_threshold` of 0.5, else the side of the score.
    """
    if num_votes == 0:
        return False
    if tie_threshold is None:
        return found.mode == people
    return people == (_side(found.score, tie_threshold) or "tie")


def measure(
    compared: Compared,
    rows: Sequence[Comparison],
    verdicts: Mapping[str, Verdict],
    tie_threshold: float | None,
    seed: int,
) -> dict[str, Any]:
    """The measures by dimension; means with 95 % bootstrap intervals over prompts, null where undefined.

    `verdicts` are by question id and already have their certainty. A dimension that no line labels is absent.
    """
    by_dimension: dict[str, list[Measured]] = {name: [] for name in compared.dimensions.values()}
    for row in rows:
        verdict = verdicts[_id(row)]
        for name, answer in row.answers.items():
            by_dimension[name].append(
                Measured(answer, verdict.dimensions[name], verdict.num_votes, row.prompt)
            )
    return {name: _measures(of, tie_threshold, seed) for name, of in by_dimension.items() if of}


def _measures(of: Sequence[Measured], tie_threshold: float | None, seed: int) -> dict[str, Any]:
    decided = [m for m in of if m.people != "tie"]
    complete = [m for m in of if m.found.flip_rate is not None]

    def mean(values: Sequence[float], pairs: Sequence[Measured]) -> dict[str, Any]:
        return _as_json(bootstrap_mean(values, [m.prompt for m in pairs], seed))

    right = [float(is_right(m.people, m.found, m.num_votes, tie_threshold)) for m in of]
    # a score of 0.5, as of a failed reply, is on nobody's side and so wrong
    sides = [float(_side(m.found.score, 0.0) == m.people) for m in decided]
    return {
        "num_pairs": len(of),
        "num_decided": len(decided),
        "accuracy_with_ties": mean(right, of),
        "accuracy_without_ties": mean(sides, decided),
        "flip_rate": mean([m.found.flip_rate or 0.0 for m in complete], complete),
        **_calibration(of, seed),
        "num_failed": sum(m.num_votes == 0 for m in of),
    }


def _calibration(of: Sequence[Measured], seed: int) -> dict[str, Any]:
    """ECE and Brier skill of the probability that the preferred clip is better; ties of people count half.

    Null where the certainty is no probability. A pair without a vote has none, one without a preferred clip
    (a score of 0.5) is half an outcome, too.
    """
    known = [m for m in of if m.found.calibrated_for is not None and m.num_votes]
    outcomes = []
    for m in known:
        side = _side(m.found.score, 0.0)
        outcomes.append(0.5 if side is None or m.people == "tie" else float(side == m.people))
    p, y, prompts = (
        np.array([m.found.certainty for m in known]),
        np.array(outcomes),
        [m.prompt for m in known],
    )
    return {
        "ece": _as_json(bootstrap(lambda w: ece(p, y, weights=w), prompts, seed)),
        "brier_skill": _as_json(bootstrap(lambda w: brier_skill(p, y, weights=w), prompts, seed)),
    }


def _side(score: float, threshold: float) -> Answer | None:
    if abs(score - 0.5) <= threshold + _SAME:
        return None
    return "first" if score > 0.5 else "second"


def _as_json(interval: Interval) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in vars(interval).items()}


def write_out(report: Mapping[str, Any]) -> list[str]:
    """What `run_bench` found, as lines to read."""
    threshold = report["tie_threshold"]
    tie = "the most frequent answer is tie, or first and second are as frequent"
    lines = [
        f"judge: {report['judge']}",
        f"pairs: {report['num_lines']} of {report['file']} ({report['layout']}), "
        f"{report['num_prompts']} prompts" + _also_skipped(report["skipped"]),
        f"labels: {', '.join(_named(c, d) for c, d in report['columns'].items())}",
        f"shown: {report['shown']}",
        f"votes: {report['num_votes']}, {report['votes_per_decision']:.2f} a decision; "
        f"abstentions: {_listed(report['abstentions'])}; pairs without a vote: {report['num_failed']}",
        f"the judge says tie where {tie if threshold is None else f'its score is within {threshold} of 0.5'}",
        "",
        f"{'dimension':<16}  {'pairs':>5}  {'accuracy with ties':<20}  {'decided':>7}  "
        f"{'accuracy without':<20}  {'order flips':<20}  {'ECE':<20}  Brier skill",
    ]
    for name, of in report["dimensions"].items():
        lines.append(
            f"{name:<16}  {of['num_pairs']:>5}  {_interval(of['accuracy_with_ties']):<20}  "
            f"{of['num_decided']:>7}  {_interval(of['accuracy_without_ties']):<20}  "
            f"{_interval(of['flip_rate']):<20}  {_interval(of['ece']):<20}  {_interval(of['brier_skill'])}"
        )
    return [*lines, "in brackets: 95 % intervals over prompts"]


def _named(column: str, dimension: str) -> str:
    return f"{'majority of ' if '+' in column else ''}{column} as {dimension}"


def _interval(of: Mapping[str, Any]) -> str:
    return "–" if of["value"] is None else f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.items()) or "none"


def _also_skipped(counts: Mapping[str, int]) -> str:
    return f"; skipped: {_listed(counts)}" if counts else ""


def _counts(skipped: Sequence[SkippedLine]) -> dict[str, int]:
    return dict(Counter(s.reason for s in skipped).most_common())


def _counted(skipped: Sequence[SkippedLine]) -> str:
    first = f"; line {skipped[0].line}: {skipped[0].detail}" if skipped else ""
    return f"skipped: {_listed(_counts(skipped))}{first}"


def _id(row: Comparison) -> str:
    """Of the question, and so of its seeds: people may have been asked twice, the judge is asked once."""
    text = "\x00".join((row.first, row.second, row.prompt))
    return f"given-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def _question(row: Comparison, folder: Path, chosen: ChosenJudge, whole: bool) -> Question:
    first, second = (
        GivenClip(folder / path, chosen.config.data.clip, whole) for path in (row.first, row.second)
    )
    return Question(_id(row), KIND, row.prompt, first, second, chosen.judge.dimensions, group=row.prompt)


def _mark(question: Question) -> str:
    """What tells a question from one about other clips of the same names."""
    sizes = [str(p.stat().st_size) if (p := Path(c.key)).is_file() else "none" for c in _clips(question)]
    return " ".join([question.id, *sizes])


def _clips(question: Question) -> tuple[GivenClip, GivenClip]:
    assert isinstance(question.first, GivenClip) and isinstance(question.second, GivenClip)
    return question.first, question.second


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"--out {out} is a file; name a folder") from None
        yield out


def _claim(folder: Path, parts: Sequence[Any]) -> None:
    """Raise UserError if the folder holds votes on other questions or of another judge."""
    mark = hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()
    file = folder / "asked.json"
    if not file.exists():
        write_json(file, {"fingerprint": mark})
    elif json.loads(file.read_text(encoding="utf-8")).get("fingerprint") != mark:
        raise UserError(
            f"--out {folder} holds votes of another judge, file, --limit, --ballots or --whole; "
            "choose another folder"
        )


def _ask(
    judge: Judge, questions: Sequence[Question], num_ballots: int, folder: Path, progress: Progress
) -> tuple[list[Vote], dict[str, tuple[str, str]]]:
    """All votes, and (reason, detail) for each question whose clips cannot be shown, by its id."""
    shards = folder / "shards"
    shards.mkdir(exist_ok=True)
    progress.start(len(questions), "pairs")
    votes: list[Vote] = []
    unusable: dict[str, tuple[str, str]] = {}
    for start in range(0, len(questions), _SHARD):
        shard = questions[start : start + _SHARD]
        path = shards / f"{start:06d}.json"
        if not path.exists():
            _ask_shard(judge, shard, num_ballots, path)
        kept = json.loads(path.read_text(encoding="utf-8"))
        votes += [Vote(**row) for row in kept["votes"]]
        unusable |= {id: (why[0], why[1]) for id, why in kept["unusable"].items()}
        progress.advance(len(shard))
    progress.done()
    return votes, unusable


def _ask_shard(judge: Judge, shard: Sequence[Question], num_ballots: int, path: Path) -> None:
    unusable = {q.id: why for q in shard if (why := _why_not(q)) is not None}
    asks = [ask for q in shard if q.id not in unusable for ask in make_asks(q, num_ballots)]
    votes = ask_judge(judge, asks) if asks else []
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({"votes": [vars(v) for v in votes], "unusable": unusable}))
    os.replace(temporary, path)


def _why_not(question: Question) -> tuple[str, str] | None:
    """(reason, detail) if one of the clips cannot be shown."""
    for clip in _clips(question):
        if not clip.path.is_file():
            return "no such video file", clip.path.name
        try:
            clip()
        except ValueError as error:
            reason = "shorter than data.clip" if "is shorter than" in str(error) else "unreadable video"
            return reason, str(error)
    return None

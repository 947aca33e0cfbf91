"""What sequential stopping of votes saves, and what it costs, against always asking 8 ballots.

    python benchmarks/voting.py simulate [--questions 4000] [--seed 1] [--plot FILE.svg]
    python benchmarks/voting.py choose [--questions 4000] [--seed 0]
    python benchmarks/voting.py replay RUN … [--min-ballots 2]
    python benchmarks/voting.py ask RUN [--questions 48]

`simulate`: judges whose accuracy on every question is known. `choose`: of all settings the one that spends
fewest votes on those questions at no more than half a point of agreement lost; report it on another seed.
`replay`: the rule on votes that finished campaigns recorded; only questions with more ballots than
`--min-ballots` can be replayed. `ask`: the last judge in force of a run answers known answers afresh, 8
ballots each, and the rule is replayed on those votes.

One JSON row a setting. votes: share of the full votes spent; lost: points of agreement with the mode of all
ballots lost, with the half-width of its 95 % interval; accuracy and full accuracy: share of questions whose
mode is the truth; wrong side: of the questions that stopped early with a side, the share where it is not the
truth; wald: share of the full votes that Wald's bound asks for at error δ of a test that is told
each question's vote distribution, at most all of them. Two more kinds of row: the best that any rule can do
where only accuracy varies (dynamic programming), and votes and errors at one accuracy beside Wald's bound.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import betaln, comb

from reward.config import VotingConfig
from reward.stopping import has_stopped, modes, vote_in_waves, wald_bound

BALLOTS = 8
TIE, ABSTENTION = 2, 3
ERRORS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
CORRELATIONS = (0.0, 0.05, 0.1, 0.2)
CHOSEN = VotingConfig(num_ballots=BALLOTS, min_ballots=3)  # what `choose` finds over all worlds, seed 0
LOST_GOAL, VOTES_GOAL = 0.5, 0.4  # points of agreement, share of votes


@dataclass(frozen=True)
class World:
    """Simulated questions. Of a question whose truth is a side, a vote that is no tie is right with
    probability θ; of a true tie with probability ½, and its votes are ties four times as often.

    accuracy: (a, b) of the Beta distribution that draws p, the judge's accuracy on a question.
    correlation: ρ of the votes given p: θ is drawn from Beta(p·(1/ρ−1), (1−p)·(1/ρ−1)), so the votes of a
        question are beta-binomial. 0: θ = p.
    bias: added to the logit of a vote for the clip shown first.
    ties: mean probability of a tie, of each question drawn from Beta(1, 1/ties − 1).
    true_ties: share of questions whose truth is a tie.
    """

    accuracy: tuple[float, float] = (3.0, 1.0)
    correlation: float = 0.0
    bias: float = 0.0
    ties: float = 0.0
    true_ties: float = 0.0
    abstentions: float = 0.0


WORLDS = {
    "plain": World(),
    "strong judge": World(accuracy=(9.0, 1.0)),
    "weak judge": World(accuracy=(6.0, 4.0)),
    "correlated": World(correlation=0.2),
    "position bias": World(bias=1.0),
    "ties": World(ties=0.2, true_ties=0.2),
    "everything": World(correlation=0.2, bias=0.5, ties=0.15, true_ties=0.1, abstentions=0.05),
}


@dataclass(frozen=True)
class Asked:
    """Votes of many questions.

    answers [Q, ballots, 2 orders]: 0 first, 1 second, 2 tie, 3 abstention, in the question's order.
    truth [Q]; evidence [Q]: nats that a vote tells of the side on average, for Wald's bound.
    """

    answers: np.ndarray
    truth: np.ndarray | None = None
    evidence: np.ndarray | None = None

    @cached_property
    def tables(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each number of ballots the different counts [N, 2, 3], and which of them a question has [Q]."""
        counts = (self.answers[..., None] == np.arange(3)).cumsum(axis=1)
        return [_different(counts[:, n]) for n in range(counts.shape[1])]

    @cached_property
    def modes(self) -> np.ndarray:
        """[ballots, Q]: the mode after each ballot."""
        return np.stack([modes(tables)[of_question] for tables, of_question in self.tables])


def _different(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes = counts.reshape(len(counts), -1) @ (counts.max() + 1) ** np.arange(counts[0].size)
    _, where, of_question = np.unique(codes, return_index=True, return_inverse=True)
    return counts[where].astype(float), of_question


def simulate(world: World, num_questions: int, rng: np.random.Generator) -> Asked:
    """All ballots of `num_questions` questions of a world."""
    truth = rng.integers(0, 2, num_questions)
    p = np.clip(rng.beta(*world.accuracy, num_questions), 1e-6, 1 - 1e-6)
    if world.correlation:
        strength = 1 / world.correlation - 1
        p = np.clip(rng.beta(p * strength, (1 - p) * strength), 1e-6, 1 - 1e-6)
    tie = rng.beta(1, 1 / world.ties - 1, num_questions) if world.ties else np.zeros(num_questions)
    is_tie = rng.random(num_questions) < world.true_ties
    p, tie = np.where(is_tie, 0.5, p), np.where(is_tie, np.minimum(0.95, 4 * tie), tie)
    # logit of "first" in the question's order; the clip shown first is the second one where it is swapped
    logit = np.where(truth == 0, 1, -1) * np.log(p / (1 - p))
    shown = logit[:, None] + world.bias * np.array([1, -1])
    shape = (num_questions, BALLOTS, 2)
    side = (rng.random(shape) > 1 / (1 + np.exp(-shown[:, None, :]))).astype(int)
    answers = np.where(rng.random(shape) < tie[:, None, None], TIE, side)
    answers = np.where(rng.random(shape) < world.abstentions, ABSTENTION, answers)
    useful = (1 - tie) * (1 - world.abstentions)
    evidence = useful * np.abs(2 * p - 1) * np.abs(np.log(p / (1 - p)))
    return Asked(answers, np.where(is_tie, TIE, truth), evidence)


def stops(asked: Asked, voting: VotingConfig) -> np.ndarray:
    """Ballots after which each question stops [Q]."""
    stopped = [
        has_stopped(tables, n, voting)[of_question] for n, (tables, of_question) in enumerate(asked.tables, 1)
    ]
    return np.stack(stopped).argmax(0) + 1


def score(asked: Asked, voting: VotingConfig) -> dict[str, Any]:
    """The row of one setting on one set of questions."""
    num_ballots = stops(asked, voting)
    full = asked.modes[-1]
    early = asked.modes[num_ballots - 1, np.arange(len(full))]
    lost = 100 * (early != full).mean()
    row = {
        "min_ballots": voting.least_ballots,
        "δ": voting.stop_error,
        "ρ": voting.vote_correlation,
        "votes": round(float(num_ballots.mean()) / voting.num_ballots, 3),
        "lost": round(float(lost), 2),
        "±": round(float(1.96 * np.sqrt(lost * (100 - lost) / len(full))), 2),
    }
    if asked.truth is not None:
        row["accuracy"] = round(float((early == asked.truth).mean()), 4)
        row["full accuracy"] = round(float((full == asked.truth).mean()), 4)
        named = (num_ballots < voting.num_ballots) & (early != TIE)
        row["wrong side"] = round(float((early != asked.truth)[named].mean()), 3) if named.any() else None
    if asked.evidence is not None:
        needed = _evidence_for(voting.stop_error) / np.maximum(asked.evidence, 1e-9)
        row["wald"] = round(float(np.minimum(needed / (2 * voting.num_ballots), 1).mean()), 3)
    return row


def _evidence_for(error: float) -> float:
    """Nats that a test with this error needs on average: the bound's numerator."""
    p = 0.75  # of any accuracy: it cancels
    return wald_bound(p, error) * (2 * p - 1) * float(np.log(p / (1 - p)))


def fixed_accuracy(
    accuracy: float, voting: VotingConfig, num: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Votes that the rule spends on questions of one accuracy, beside Wald's bound at the error it makes."""
    first = rng.random((num, BALLOTS, 2)) < accuracy
    asked = Asked(np.where(first, 0, 1))
    num_ballots = stops(asked, voting)
    row: dict[str, Any] = {"accuracy of a vote": accuracy, "δ": voting.stop_error}
    for name, ballots in (("", num_ballots), ("full ", np.full(num, BALLOTS))):
        mode = asked.modes[ballots - 1, np.arange(num)]
        error = float((mode == 1).mean() + (mode == TIE).mean() / 2)  # a draw is settled by a coin
        row[f"{name}votes"] = round(2 * float(ballots.mean()), 2)
        row[f"{name}error"] = round(error, 4)
        row[f"{name}wald"] = round(wald_bound(accuracy, error), 2) if 0 < error < 0.5 else None
    return row


def frontier(accuracy: tuple[float, float], num_ballots: int = BALLOTS) -> list[tuple[float, float]]:
    """(share of votes, points of agreement lost) of the best rules that there can be, fewest votes first.

    For a world whose only parameter is `accuracy`, which these rules know. Dynamic programming over the
    votes for first among the votes so far, for many prices of a disagreement: whatever rule stops after
    complete ballots with the mode so far, its point lies on or above the line through these points.
    """
    paths = [_log_paths(accuracy, 2 * n) for n in range(num_ballots + 1)]
    missed = [
        np.array([_disagreement(paths, n, w) for w in range(2 * n + 1)]) for n in range(num_ballots + 1)
    ]
    points = {_best_rule(paths, missed, price) for price in np.geomspace(0.5, 3000, 50)}
    return sorted(points)


def _log_paths(accuracy: tuple[float, float], num_votes: int) -> np.ndarray:
    """ln of the probability of one sequence of votes with w = 0 … `num_votes` for first, over both truths."""
    w, (a, b) = np.arange(num_votes + 1), accuracy
    right, wrong = betaln(a + w, b + num_votes - w), betaln(b + w, a + num_votes - w)
    return np.logaddexp(right, wrong) - np.log(2) - betaln(a, b)


def _best_rule(paths: list[np.ndarray], missed: list[np.ndarray], price: float) -> tuple[float, float]:
    """(share of votes, points lost) of the rule with the least ballots + `price` · disagreement."""
    last = len(paths) - 1
    value = votes = lost = np.zeros(2 * last + 1)
    for n in range(last - 1, 0, -1):
        step = np.array([1, 2, 1]) * np.exp(
            paths[n + 1][np.arange(2 * n + 1)[:, None] + np.arange(3)] - paths[n][:, None]
        )
        go_on = [
            (step * future[np.arange(2 * n + 1)[:, None] + np.arange(3)]).sum(1)
            for future in (value, votes, lost)
        ]
        stop = price * missed[n] <= go_on[0] + 1
        value = np.where(stop, price * missed[n], go_on[0] + 1)
        votes, lost = np.where(stop, 0, go_on[1] + 1), np.where(stop, missed[n], go_on[2])
    first = np.array([1, 2, 1]) * np.exp(paths[1])
    return round(float(1 + first @ votes) / last, 3), round(100 * float(first @ lost), 2)


def _disagreement(paths: list[np.ndarray], n: int, w: int) -> float:
    """The probability that all ballots name another side than w votes for first after n ballots do."""
    last = len(paths) - 1
    more = np.arange(2 * (last - n) + 1)
    p = comb(len(more) - 1, more) * np.exp(paths[last][w + more] - paths[n][w])
    return float(p[np.sign(w + more - last) != np.sign(w - n)].sum())


def settings(min_ballots: tuple[int, ...] = (1, 2)) -> Iterator[VotingConfig]:
    for least in min_ballots:
        for correlation in CORRELATIONS:
            for error in ERRORS:
                yield VotingConfig(
                    num_ballots=BALLOTS, min_ballots=least, stop_error=error, vote_correlation=correlation
                )


def worlds(num_questions: int, seed: int) -> dict[str, Asked]:
    """Every world's questions, and "pooled": all of them together."""
    made = {
        name: simulate(world, num_questions, np.random.default_rng((seed, number)))
        for number, (name, world) in enumerate(WORLDS.items())
    }
    fields = ("answers", "truth", "evidence")
    made["pooled"] = Asked(*(np.concatenate([getattr(a, f) for a in made.values()]) for f in fields))
    return made


def report(num_questions: int, seed: int, plot: Path | None) -> None:
    """The curve over δ and ρ on every world, the best rules there can be, and the rows of one accuracy."""
    rows = []
    for name, asked in worlds(num_questions, seed).items():
        pooled = name == "pooled"
        curve = [
            v for v in settings((1, 2, 3) if pooled else (2, 3)) if pooled or v.vote_correlation in (0, 0.1)
        ]
        for voting in curve:
            row = {"questions": name, "num": len(asked.answers), **score(asked, voting)}
            row["goal met"] = row["votes"] <= VOTES_GOAL and row["lost"] <= LOST_GOAL
            rows.append(row)
            _print(row)
    for name, world in WORLDS.items():
        if world == World(accuracy=world.accuracy):
            votes, lost = np.transpose(frontier(world.accuracy))
            _print(
                {
                    "questions": name,
                    f"votes of the best rule that loses {LOST_GOAL}": round(
                        float(np.interp(-LOST_GOAL, -lost, votes)), 3
                    ),
                    f"lost by the best rule with {VOTES_GOAL} of the votes": round(
                        float(np.interp(VOTES_GOAL, votes, lost)), 2
                    ),
                }
            )
    for number, accuracy in enumerate((0.6, 0.7, 0.8, 0.9, 0.95)):
        _print(fixed_accuracy(accuracy, CHOSEN, num_questions, np.random.default_rng((seed, 100 + number))))
    if plot:
        _plot(rows, plot)


def choose(num_questions: int, seed: int) -> None:
    """Of every world the setting with fewest votes at no more than LOST_GOAL points lost."""
    for name, asked in worlds(num_questions, seed).items():
        rows = [score(asked, voting) for voting in settings((1, 2, 3))]
        able = [row for row in rows if row["lost"] <= LOST_GOAL]
        _print(
            {"questions": name, **min(able, key=lambda row: row["votes"])} if able else {"questions": name}
        )


def replay(runs: list[Path], min_ballots: int) -> None:
    """The rule on recorded votes: questions with equally many complete ballots together."""
    import pandas as pd

    for run in runs:
        files = sorted(
            [*run.glob("round-*/label/votes.parquet"), *run.glob("round-*/train_judge/own_votes.parquet")]
        )
        for file in files:
            table = pd.read_parquet(file, columns=["question_id", "swapped", "ballot", "answers"])
            for num_ballots, asked in recorded(table).items():
                about = {
                    "run": run.name,
                    "votes of": f"{file.parent.parent.name}/{file.parent.name}",
                    "num": len(asked.answers),
                    "ballots": num_ballots,
                    "ties": round(float((asked.answers == TIE).mean()), 3),
                    "abstentions": round(float((asked.answers == ABSTENTION).mean()), 3),
                    "flips": round(float((asked.answers.sum(-1) == 1).mean()), 3),
                }
                if num_ballots <= min_ballots:
                    _print({**about, "replayed": False, "why": f"no more than {min_ballots} ballots"})
                    continue
                for error in ERRORS:
                    voting = VotingConfig(num_ballots=num_ballots, min_ballots=min_ballots, stop_error=error)
                    _print({**about, "replayed": True, **score(asked, voting)})


def recorded(table: Any, dimension: str = "overall") -> dict[int, Asked]:
    """Votes of a table (question_id, swapped, ballot, answers as shown) by the number of ballots."""
    codes = {"first": 0, "second": 1, "tie": TIE}
    by_question: dict[str, dict[tuple[int, int], int]] = {}
    for row in table.itertuples():
        code = ABSTENTION
        if isinstance(row.answers, str):
            code = codes[json.loads(row.answers)[dimension]]
            code = 1 - code if row.swapped and code != TIE else code
        by_question.setdefault(row.question_id, {})[row.ballot, int(row.swapped)] = code
    found: dict[int, list[np.ndarray]] = {}
    for votes in by_question.values():
        num_ballots = len(votes) // 2
        if set(votes) == {(b, s) for b in range(num_ballots) for s in (0, 1)}:
            answers = [[votes[b, s] for s in (0, 1)] for b in range(num_ballots)]
            found.setdefault(num_ballots, []).append(np.array(answers))
    return {num: Asked(np.stack(rows)) for num, rows in sorted(found.items())}


def ask(run: Path, num_questions: int) -> None:
    """The rule on fresh votes: the run's last judge in force answers known answers of the report part.

    Asks all ballots at once, then in waves at the default δ; prints CPU seconds of both and how far the
    replies to the same asks differ (they should not), then the rows of all settings without a discount.
    """
    from rich.console import Console

    from loop.config import CampaignConfig
    from loop.progress import LineProgress
    from loop.stages import StageContext
    from loop.steps.judge_gate import known_answers
    from loop.steps.judging import open_judge
    from reward.question import ANSWERS
    from reward.voting import make_asks

    config = CampaignConfig.model_validate_json((run / "resolved.json").read_text())
    gates = sorted(run.glob("round-*/judge_gate/gate.json"))
    used = [path.parent.parent / "train_judge" for path in gates if json.loads(path.read_text())["use"]]
    with tempfile.TemporaryDirectory() as scratch:
        progress = LineProgress(run.name, Console(stderr=True))
        inputs = {"prepare": run / "round-000" / "prepare"}
        ctx = StageContext(
            config, 0, inputs, Path(scratch), 0, progress, logging.getLogger("retake"), "evaluate"
        )
        known = known_answers(ctx, "report", num_questions)
        judge = open_judge(ctx, used[-1] if used else None)
        started = time.process_time()
        votes = judge.vote([a for k in known for a in make_asks(k.question, BALLOTS)])
        between = time.process_time()
        in_waves = vote_in_waves([k.question for k in known], CHOSEN, judge.vote)
        seconds = between - started, time.process_time() - between
        judge.close()
    before = {v.seed: v for v in votes}
    _print(
        {
            "run": run.name,
            "CPU seconds of all ballots": round(seconds[0], 1),
            "in waves": round(seconds[1], 1),
            "votes in waves": round(len(in_waves) / len(votes), 3),
            "replies that differ": sum(before[v.seed].answers != v.answers for v in in_waves)
            + sum(before[v.seed].reasoning != v.reasoning for v in in_waves),
            "largest change of a log-probability": max(
                abs((before[v.seed].log_probability or 0) - (v.log_probability or 0)) for v in in_waves
            ),
        }
    )
    code = {answer: number for number, answer in enumerate(ANSWERS)}
    unswapped = [v.unswapped() for v in votes]
    answers = np.array([ABSTENTION if a is None else code[a["overall"]] for a in unswapped])
    truth = np.array([code[k.answers["overall"]] for k in known])
    asked = Asked(answers.reshape(-1, BALLOTS, 2), truth)
    judge_name = used[-1].parent.name if used else "first"
    for voting in settings((1, 2)):
        if voting.vote_correlation == 0:
            _print({"run": run.name, "judge": judge_name, "num": len(known), **score(asked, voting)})


def _print(row: dict[str, Any]) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for name in dict.fromkeys(row["questions"] for row in rows):
        curve = [r for r in rows if (r["questions"], r["ρ"], r["min_ballots"]) == (name, 0.0, 2)]
        axes.plot([r["votes"] for r in curve], [r["lost"] for r in curve], marker=".", label=name)
    axes.axhline(LOST_GOAL, color="grey", linewidth=0.5)
    axes.axvline(VOTES_GOAL, color="grey", linewidth=0.5)
    axes.set(xlabel="share of the full votes", ylabel="points of agreement lost", ylim=(0, 6))
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, seed in (("simulate", 1), ("choose", 0)):
        one = commands.add_parser(name)
        one.add_argument("--questions", type=int, default=4000, help="of each world")
        one.add_argument("--seed", type=int, default=seed)
    commands.choices["simulate"].add_argument("--plot", type=Path)
    one = commands.add_parser("replay")
    one.add_argument("runs", type=Path, nargs="+")
    one.add_argument("--min-ballots", type=int, default=2)
    one = commands.add_parser("ask")
    one.add_argument("run", type=Path)
    one.add_argument("--questions", type=int, default=48)
    options = parser.parse_args()
    if options.command == "simulate":
        report(options.questions, options.seed, options.plot)
    elif options.command == "choose":
        choose(options.questions, options.seed)
    elif options.command == "replay":
        replay(options.runs, options.min_ballots)
    else:
        ask(options.run, options.questions)


if __name__ == "__main__":
    main()

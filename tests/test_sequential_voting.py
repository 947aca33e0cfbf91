"""A question stops when its votes are clear, never before, and the others keep the votes they always had."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.voting import (
    ABSTENTION,
    BALLOTS,
    CHOSEN,
    WORLDS,
    World,
    choose,
    fixed_accuracy,
    frontier,
    recorded,
    report,
    score,
    simulate,
    stops,
)
from loop.config_file import load_config
from loop.steps import judging
from reward.config import VotingConfig
from reward.question import ANSWERS, Reply, Vote, mirrored, vote_of
from reward.stopping import (
    can_change,
    count_answers,
    has_stopped,
    modes,
    probability_first,
    vote_in_waves,
    wald_bound,
)
from reward.voting import fold, make_asks
from tests.reward_clips import question


def counts(shown=(0, 0, 0), swapped=(0, 0, 0)):
    return np.array([shown, swapped], dtype=float)


def votes_of(table):
    """Votes of question q0 whose answers, in the question's order, are those of `table` [2, 3]."""
    made = []
    for swapped in (False, True):
        for answer, num in zip(ANSWERS, table[int(swapped)], strict=True):
            for _ in range(int(num)):
                answers = {"motion": "tie", "overall": answer}
                shown = mirrored(answers) if swapped else answers
                made.append(Vote("q0", swapped, len(made), 0, shown, ""))
    return made


class FakeJudge:
    """Each question has an accuracy of its own; a vote is drawn from the ask's seed, and keeps its ask."""

    def __init__(self, breaks_at=None):
        self.waves, self.breaks_at = [], breaks_at

    def vote(self, asks):
        if len(self.waves) == self.breaks_at:
            raise KeyboardInterrupt
        self.waves.append([(a.question.id, a.ballot, a.swapped) for a in asks])
        return [vote_of(a, Reply(self.answers(a), f"seed {a.seed}", None)) for a in asks]

    @staticmethod
    def answers(ask):
        sure = 0.4 + 0.1 * (int(ask.question.id[1:]) % 7)
        u = np.random.default_rng(ask.seed).random()
        answer = "first" if u < sure else "second" if u < 1 - 0.1 * sure else "tie"
        answers = {"motion": "tie", "overall": answer}
        return mirrored(answers) if ask.swapped else answers


QUESTIONS = [question(f"q{i}") for i in range(30)]
EARLY = VotingConfig(num_ballots=8, min_ballots=2)


def test_posteriors_are_those_computed_by_hand():
    assert probability_first(counts()) == 0.5
    assert probability_first(counts((1, 0, 0), (1, 0, 0))) == pytest.approx(1 - 1 / 8)  # Beta(3, 1)
    assert probability_first(counts((2, 0, 0), (2, 0, 0))) == pytest.approx(1 - 1 / 32)  # Beta(5, 1)
    assert probability_first(counts((2, 0, 0), (1, 1, 0))) == pytest.approx(26 / 32)  # Beta(4, 2)
    assert probability_first(counts((1, 0, 1), (1, 0, 1))) == pytest.approx(26 / 32)  # ties: half to each
    assert probability_first(counts((0, 0, 5), (0, 0, 5))) == pytest.approx(0.5)


def test_correlated_votes_count_less():
    four = counts((2, 0, 0), (2, 0, 0))
    # four votes with ρ = 1/3 are two, and with ρ = 1 a single one
    assert probability_first(four, 1 / 3) == pytest.approx(1 - 1 / 8)
    assert probability_first(four, 1.0) == pytest.approx(1 - 1 / 4)


def test_position_bias_cancels():
    """A judge that always says first contradicts itself, even where abstentions thin out one order."""
    assert probability_first(counts((6, 0, 0), (0, 6, 0))) == pytest.approx(0.5)
    assert probability_first(counts((6, 0, 0), (0, 1, 0))) == pytest.approx(0.5)
    voting = VotingConfig(num_ballots=8, min_ballots=1)
    assert not has_stopped(counts((4, 0, 0), (0, 4, 0)), 4, voting)
    assert not has_stopped(counts((7, 0, 0), (0, 0, 0)), 7, voting)  # one order alone cannot stop


def test_it_stops_at_the_boundary_of_the_error_and_not_beyond():
    four = counts((2, 0, 0), (2, 0, 0))
    at, below = (VotingConfig(num_ballots=8, min_ballots=1, stop_error=e) for e in (1 / 32, 1 / 32 - 1e-6))
    assert has_stopped(four, 2, at) and not has_stopped(four, 2, below)
    assert has_stopped(four[:, [1, 0, 2]], 2, at)  # second is as clear
    assert not has_stopped(four, 2, VotingConfig(num_ballots=8, min_ballots=3, stop_error=0.4))
    assert has_stopped(counts(), 8, at)  # all ballots are spent
    correlated = VotingConfig(num_ballots=8, min_ballots=1, stop_error=1 / 32, vote_correlation=0.1)
    assert not has_stopped(four, 2, correlated)


def test_a_side_that_leads_among_ties_is_not_a_verdict():
    """Most votes say tie, so the verdict is a tie, however clear the side of the others."""
    leaning = counts((5, 0, 6), (5, 0, 6))
    assert probability_first(leaning) > 0.97
    assert fold(question(), votes_of(leaning)).dimensions["overall"].mode == "tie"
    assert not has_stopped(leaning, 11, VotingConfig(num_ballots=16, min_ballots=1))


def test_ties_stop_only_where_nothing_can_undo_them():
    voting = VotingConfig(num_ballots=8, min_ballots=1)
    assert not has_stopped(counts((0, 0, 3), (0, 0, 3)), 3, voting)  # five ballots could all say first
    assert has_stopped(counts((0, 0, 4), (0, 0, 4)), 4, voting)  # four against four is a draw, so a tie
    assert not has_stopped(counts((0, 0, 4), (0, 0, 3)), 4, voting)
    assert not has_stopped(counts((2, 0, 3), (0, 2, 3)), 5, voting)


TABLES = [
    (2, [t for t in itertools.product(range(3), repeat=6) if sum(t[:3]) <= 2 and sum(t[3:]) <= 2]),
    (3, [t for t in itertools.product(range(4), repeat=6) if sum(t[:3]) <= 3 and 1 <= sum(t[3:]) <= 3]),
]


@pytest.mark.parametrize(("num_votes", "tables"), TABLES, ids=["two", "three"])
@pytest.mark.parametrize("num_remaining", [0, 1, 2, 3])
def test_what_can_change_agrees_with_every_completion(num_votes, tables, num_remaining):
    """All answers and abstentions of all remaining votes; orders need not have the same number of votes."""
    here = np.array(tables, dtype=float).reshape(-1, 2, 3)
    added = [a for a in itertools.product(range(num_remaining + 1), repeat=3) if sum(a) <= num_remaining]
    changes = np.zeros(len(here), dtype=bool)
    for one, other in itertools.product(added, added):
        changes |= modes(here + np.array([one, other], dtype=float)) != modes(here)
    np.testing.assert_array_equal(can_change(here, num_remaining), changes)
    if num_remaining == 1:
        assert changes.any() and not changes.all()


TABLE = st.lists(st.integers(0, 6), min_size=6, max_size=6).map(lambda t: np.array(t, float).reshape(2, 3))


@settings(max_examples=150, deadline=None)
@given(TABLE)
def test_counts_and_modes_are_those_of_the_fold(table):
    votes = votes_of(table)
    np.testing.assert_array_equal(count_answers(votes, "overall"), table)
    assert ANSWERS[modes(table)] == (fold(question(), votes).dimensions["overall"].mode or "tie")


@settings(max_examples=150, deadline=None)
@given(
    TABLE, st.integers(1, 12), st.sampled_from([0.02, 0.05, 0.1, 0.3]), st.sampled_from([0.0, 0.1, 0.5, 1.0])
)
def test_swapping_first_and_second_mirrors_the_decision(table, num_ballots, error, correlation):
    voting = VotingConfig(num_ballots=12, min_ballots=1, stop_error=error, vote_correlation=correlation)
    mirror = table[::-1, [1, 0, 2]]
    assert has_stopped(table, num_ballots, voting) == has_stopped(mirror, num_ballots, voting)
    assert {0: 1, 1: 0, 2: 2}[int(modes(table))] == int(modes(mirror))
    both = probability_first(np.stack([table, mirror]), correlation)
    assert both.sum() == pytest.approx(1)


def test_a_question_that_goes_the_whole_way_has_todays_votes():
    judge = FakeJudge()
    votes = vote_in_waves(QUESTIONS, EARLY, judge.vote)
    assert [v.question_id for v in votes] == sorted(
        (v.question_id for v in votes), key=lambda q: int(q[1:])
    )  # question by question
    num_whole = 0
    for q in QUESTIONS:
        mine = [v for v in votes if v.question_id == q.id]
        today = FakeJudge().vote(make_asks(q, 8))
        assert mine == today[: len(mine)] and len(mine) % 2 == 0 and len(mine) >= 4
        num_whole += mine == today
        # each stopped as soon as it could, and no later
        tables = [count_answers(today[: 2 * n], "overall") for n in range(1, 9)]
        assert len(mine) == 2 * next(n for n in range(2, 9) if has_stopped(tables[n - 1], n, EARLY))
    assert 0 < num_whole < len(QUESTIONS)
    assert [len(w) for w in judge.waves] == sorted((len(w) for w in judge.waves), reverse=True)
    assert len(judge.waves) == 7 and len(judge.waves[0]) == 4 * len(QUESTIONS)


@pytest.mark.parametrize("voting", [VotingConfig(num_ballots=3), VotingConfig(num_ballots=3, min_ballots=3)])
def test_without_early_stops_the_asks_are_todays_in_one_call(voting):
    judge = FakeJudge()
    votes = vote_in_waves(QUESTIONS, voting, judge.vote, "a dimension that nobody asks for")
    today = [a for q in QUESTIONS for a in make_asks(q, 3)]
    assert judge.waves == [[(a.question.id, a.ballot, a.swapped) for a in today]]
    assert votes == FakeJudge().vote(today)


def test_the_dimension_that_decides_must_be_asked_for():
    with pytest.raises(ValueError, match=r"does not ask for 'quality'.*judge\.dimensions"):
        vote_in_waves(QUESTIONS, EARLY, FakeJudge().vote, "quality")
    # in "motion" all votes are ties, which nothing can undo from the fourth ballot of eight on
    assert len(vote_in_waves(QUESTIONS, EARLY, FakeJudge().vote, "motion")) == 8 * len(QUESTIONS)


def test_without_questions_nobody_is_asked():
    judge = FakeJudge()
    assert vote_in_waves([], EARLY, judge.vote) == [] and judge.waves == []


def ask(folder, judge, voting=EARLY):
    folder.mkdir(exist_ok=True)
    progress = SimpleNamespace(start=lambda *_: None, advance=lambda *_: None)
    return judging.ask(SimpleNamespace(scratch=folder, progress=progress), judge, QUESTIONS, voting, "votes")


def test_a_kill_between_waves_leaves_the_same_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "_SHARD", 8)
    whole = FakeJudge()
    votes = ask(tmp_path / "whole", whole)
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == [f"votes-{n:06d}.json" for n in (0, 8, 16, 24)]
    assert len(whole.waves) > 8  # several waves a shard, or the kill below would hit none
    for breaks_at in (1, 8, len(whole.waves) - 1):
        killed = tmp_path / f"killed-{breaks_at}"
        with pytest.raises(KeyboardInterrupt):
            ask(killed, FakeJudge(breaks_at))
        rest = FakeJudge()
        assert ask(killed, rest) == votes
        assert breaks_at < 7 or len(rest.waves) < len(whole.waves)  # finished shards are not asked again
        for name in names:
            assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_verdicts_fold_questions_with_different_numbers_of_votes(tmp_path):
    votes = ask(tmp_path, FakeJudge())
    verdicts = judging.fold_all(QUESTIONS, votes)
    assert len({v.num_votes for v in verdicts}) > 2
    full = judging.fold_all(QUESTIONS, ask(tmp_path / "full", FakeJudge(), VotingConfig(num_ballots=8)))
    same = [
        a.dimensions["overall"].mode == b.dimensions["overall"].mode
        for a, b in zip(verdicts, full, strict=True)
    ]
    assert np.mean(same) > 0.85


def test_settings_say_what_is_wrong():
    with pytest.raises(ValidationError, match="min_ballots is 5, but num_ballots only 4: lower min_ballots"):
        VotingConfig(num_ballots=4, min_ballots=5)
    for wrong in ({"stop_error": 0}, {"stop_error": 0.5}, {"vote_correlation": 1.1}, {"min_ballots": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            VotingConfig(**wrong)
    with pytest.raises(Exception, match=r"raise\s+label.voting.min_ballots\s+to 3"):
        load_config(
            "configs/quickstart.yaml",
            ["label.voting.num_ballots=4", "label.voting.min_ballots=1", "certainty.min_votes=5"],
        )


def test_idle_settings_stay_out_of_the_fingerprints():
    assert VotingConfig(num_ballots=3, min_ballots=3, stop_error=0.2).model_dump() == {"num_ballots": 3}
    assert json.loads(VotingConfig().model_dump_json()) == {"num_ballots": 4}
    assert VotingConfig.model_validate_json(EARLY.model_dump_json()) == EARLY
    assert set(EARLY.model_dump()) == {"num_ballots", "min_ballots", "stop_error", "vote_correlation"}


def test_walds_bound_is_his_formula():
    # (1 − 0.1) · ln 19 / (0.6 · ln 4)
    assert wald_bound(0.8, 0.05) == pytest.approx(3.1860, abs=1e-4)
    assert wald_bound(0.6, 0.05) > 10 * wald_bound(0.9, 0.05)
    for wrong in ((0.5, 0.05), (1.0, 0.05), (0.8, 0.0), (0.8, 0.5)):
        with pytest.raises(ValueError, match="must lie between"):
            wald_bound(*wrong)


class Recorded:
    """A judge whose votes are those of a benchmark's array, in the question's order."""

    def __init__(self, answers):
        self.answers = answers

    def vote(self, asks):
        return [vote_of(a, Reply(self._of(a), "", None if self._of(a) else "empty")) for a in asks]

    def _of(self, ask):
        code = self.answers[int(ask.question.id[1:]), ask.ballot, int(ask.swapped)]
        if code == ABSTENTION:
            return None
        answers = {"motion": "tie", "overall": ANSWERS[code]}
        return mirrored(answers) if ask.swapped else answers


def test_the_benchmark_stops_where_a_campaign_does():
    asked = simulate(WORLDS["everything"], 80, np.random.default_rng(0))
    votes = vote_in_waves([question(f"q{i}") for i in range(80)], CHOSEN, Recorded(asked.answers).vote)
    spent = [sum(v.question_id == f"q{i}" for v in votes) for i in range(80)]
    assert (2 * stops(asked, CHOSEN)).tolist() == spent
    assert score(asked, CHOSEN)["votes"] == pytest.approx(sum(spent) / (80 * 2 * BALLOTS), abs=1e-3)
    everything = VotingConfig(num_ballots=BALLOTS)
    row = score(asked, everything)
    assert (row["votes"], row["lost"], row["accuracy"]) == (1, 0, row["full accuracy"])


def test_simulated_votes_have_the_moments_that_the_world_says():
    rng = np.random.default_rng(0)
    even = simulate(World(accuracy=(1e4, 1e4), correlation=0.2), 20_000, rng).answers
    assert np.corrcoef(even[:, 0, 0], even[:, 1, 1])[0, 1] == pytest.approx(0.2, abs=0.03)
    biased = simulate(World(accuracy=(1e4, 1e4), bias=1.0), 5000, rng).answers
    shown_first = np.stack([biased[..., 0] == 0, biased[..., 1] == 1]).mean((1, 2))
    assert shown_first == pytest.approx(1 / (1 + np.exp(-1)), abs=0.02)
    ties = simulate(World(ties=0.2, abstentions=0.1), 20_000, rng).answers
    assert (ties == ABSTENTION).mean() == pytest.approx(0.1, abs=0.01)
    assert (ties == 2).mean() == pytest.approx(0.9 * 0.2, abs=0.01)
    asked = simulate(World(accuracy=(9e4, 1e4)), 5000, rng)
    assert (asked.answers == asked.truth[:, None, None]).mean() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("accuracy", [0.6, 0.7, 0.8])
def test_no_rule_beats_walds_bound(accuracy):
    row = fixed_accuracy(accuracy, CHOSEN, 4000, np.random.default_rng(0))
    assert row["wald"] < row["votes"] < row["full votes"] == 16
    assert row["error"] < 0.3


def test_no_rule_beats_the_best_one():
    best = np.array(frontier((3.0, 1.0)))
    assert (np.diff(best[:, 0]) > 0).all() and (np.diff(best[:, 1]) < 0).all()
    asked = simulate(World(), 4000, np.random.default_rng(0))
    for error in (0.05, 0.1, 0.2):
        row = score(asked, VotingConfig(num_ballots=BALLOTS, min_ballots=1, stop_error=error))
        lost = np.interp(row["votes"], best[:, 0], best[:, 1])
        assert row["lost"] > lost - 1  # as far as 4,000 questions tell
    # with two ballots there is one choice: stop after the first one, at once or where it is unanimous
    p = np.random.default_rng(1).beta(3, 1, 200_000)
    wins = np.random.default_rng(2).binomial(2, [p, p])
    disagree = np.sign(wins[0] - 1) != np.sign(wins.sum(0) - 2)
    at_once, where_unanimous = disagree.mean(), (disagree & (wins[0] != 1)).mean()
    two = dict(frontier((3.0, 1.0), 2))
    assert two[0.5] == pytest.approx(100 * at_once, abs=0.5)
    spent = 0.5 + (wins[0] == 1).mean() / 2
    assert min(two.items(), key=lambda point: abs(point[0] - spent)) == pytest.approx(
        (spent, 100 * where_unanimous), abs=0.5
    )


def test_recorded_votes_are_read_in_the_questions_order():
    def row(question_id, ballot, swapped, answer):
        answers = None if answer is None else json.dumps({"motion": "tie", "overall": answer})
        return {"question_id": question_id, "swapped": swapped, "ballot": ballot, "answers": answers}

    rows = [row("a", 0, False, "first"), row("a", 0, True, "first"), row("a", 1, False, None)]
    rows += [row("a", 1, True, "tie"), row("b", 0, True, "second"), row("b", 0, False, "second")]
    rows += [row("c", 0, False, "first")]  # not a complete ballot
    found = recorded(pd.DataFrame(rows))
    assert {n: a.answers.tolist() for n, a in found.items()} == {2: [[[0, 1], [3, 2]]], 1: [[[1, 0]]]}


def test_the_benchmark_prints_one_row_a_setting(tmp_path, capsys):
    report(50, 1, tmp_path / "curve.svg")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["questions"] for r in rows if "questions" in r} == {*WORLDS, "pooled"}
    assert all(0 < r["votes"] <= 1 for r in rows if "lost" in r)
    assert (tmp_path / "curve.svg").read_text().lstrip().startswith("<?xml")
    choose(50, 0)
    assert len(capsys.readouterr().out.splitlines()) == len(WORLDS) + 1

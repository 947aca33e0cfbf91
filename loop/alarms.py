"""Alarms: signs that a judge, or what a generator learns from it, has gone wrong.

Each function takes plain numbers and gives the alarms that they raise. Every test is an exact sign test over
independent groups (questions of one clip, takes of one prompt), one-sided; docs/gate.md lists them with their
thresholds. An alarm that too few groups could never raise is not raised.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

from loop.alarm_config import AlarmsConfig
from loop.statistics import SignTest, coin_tail, sign_test

UP = 0.05  # one-sided error of "the training judge finds it better", the harmless half of a divergence
SUFFICIENT = 0.95  # probability with which an honest judge passes, or the test is not made
CAPTION = "wrong_caption"
SATURATED = 0.98  # implicit accuracy on training pairs, as generator/watch.py has it


@dataclass(frozen=True)
class Alarm:
    """`value` is what was measured, in the unit of `threshold`, which it has crossed."""

    name: str
    reason: str
    value: float
    threshold: float


@dataclass(frozen=True)
class Answered:
    """One question on a clip and the same with a flaw, or another that the caption does not fit.

    score: share of the votes for the better clip, ties half, in [0, 1]. flip_rate: of its ballots, None where
    none is complete. confidence: the calibrated probability of the side it took, None where nothing says.
    """

    question_id: str
    kind: str  # the flaw
    group: str
    score: float
    flip_rate: float | None
    confidence: float | None = None


def as_rows(alarms: Sequence[Alarm]) -> list[dict[str, Any]]:
    return [asdict(alarm) for alarm in alarms]


# ------------------------------------------------------------------------------------------------ the judge


def judge_alarms(
    probes: Sequence[Answered], known: Sequence[Answered], settings: AlarmsConfig
) -> list[Alarm]:
    """What a judge's answers to planted flaws give away."""
    flaws = [answer for answer in probes if answer.kind != CAPTION]
    return [
        *preferred_flaws(flaws, "loves", settings),
        *preferred_flaws(known, "prefers", settings),
        *_ignores_caption([answer for answer in probes if answer.kind == CAPTION], settings),
        *_answers_by_position(probes, settings),
        *_no_better_than_chance(probes, settings),
    ]


def by_kind(answers: Sequence[Answered]) -> dict[str, list[Answered]]:
    kinds: dict[str, list[Answered]] = defaultdict(list)
    for answer in answers:
        kinds[answer.kind].append(answer)
    return dict(sorted(kinds.items()))


def preferred_flaws(answers: Sequence[Answered], verb: str, settings: AlarmsConfig) -> list[Alarm]:
    """An alarm for each kind of flaw that is preferred to its absence; α is shared among the kinds."""
    kinds = by_kind(answers)
    alarms = []
    for kind, of in kinds.items():
        test = _leaning(of)
        if test.p_below <= settings.alpha / len(kinds):
            rate = 1 - _mean(of)
            alarms.append(
                Alarm(
                    f"{verb}_{kind}",
                    f"the judge prefers the clip with this flaw to the clean one with {rate:.2f} of its "
                    f"votes, in {test.num_below} of {test.num_groups} decided clips "
                    f"(p = {test.p_below:.2g})",
                    rate,
                    0.5,
                )
            )
    return alarms


def _ignores_caption(answers: Sequence[Answered], settings: AlarmsConfig) -> list[Alarm]:
    """Two clips are asked about twice, with the caption of either: who does not read it is right once."""
    num_pairs = len({answer.group for answer in answers})
    follows, defies = settings.min_skill**2, (1 - settings.min_skill) ** 2
    if pass_probability(num_pairs, follows, defies, settings.alpha) < SUFFICIENT:
        return []
    test, rate = _leaning(answers), _mean(answers)
    if test.p_above <= settings.alpha:
        return []
    return [
        Alarm(
            "ignores_caption",
            f"asked about the same two clips with the caption of either, the judge is right in {rate:.2f} of "
            f"its votes and follows the caption in {test.num_above} of {num_pairs} pairs, against it in "
            f"{test.num_below} (p = {test.p_above:.2g})",
            rate,
            0.5,
        )
    ]


def _answers_by_position(answers: Sequence[Answered], settings: AlarmsConfig) -> list[Alarm]:
    """A coin contradicts itself in half of its ballots, position alone in all of them."""
    flips = [(a.flip_rate, a.question_id) for a in answers if a.flip_rate is not None]
    test = sign_test([rate - 0.5 for rate, _ in flips], [name for _, name in flips])
    if not flips or test.p_above > settings.alpha:
        return []
    rate = sum(r for r, _ in flips) / len(flips)
    return [
        Alarm(
            "answers_by_position",
            f"the judge contradicts itself in {rate:.2f} of {len(flips)} probes when the clips change "
            f"places, more often than a coin (p = {test.p_above:.2g})",
            rate,
            0.5,
        )
    ]


def _no_better_than_chance(answers: Sequence[Answered], settings: AlarmsConfig) -> list[Alarm]:
    """Over all probes; questions are the groups, since answers by coin are independent."""
    skill = settings.min_skill
    if pass_probability(len(answers), skill, 1 - skill, settings.alpha) < SUFFICIENT:
        return []
    test = sign_test([a.score - 0.5 for a in answers], [a.question_id for a in answers])
    if test.p_above <= settings.alpha:
        return []
    return [
        Alarm(
            "no_better_than_chance",
            f"the judge is right in {test.num_above} of {test.num_groups} decided probes of {len(answers)}, "
            f"which a coin may be (p = {test.p_above:.2g})",
            _mean(answers),
            0.5,
        )
    ]


def pass_probability(num: int, above: float, below: float, alpha: float) -> float:
    """The probability that a sign test of `num` groups finds them above zero at `alpha`.

    Each group is above with probability `above`, below with `below`, and else at zero. More than a hundred
    groups are taken for a hundred, which is all that a threshold needs.
    """
    total, num = 0.0, min(num, 100)
    for up in range(num + 1):
        for down in range(num + 1 - up):
            if coin_tail(up + down, up) <= alpha:
                rest = num - up - down
                ways = comb(num, up) * comb(num - up, down)
                total += ways * above**up * below**down * max(0.0, 1 - above - below) ** rest
    return total


def _leaning(answers: Sequence[Answered]) -> SignTest:
    return sign_test([a.score - 0.5 for a in answers], [a.group for a in answers])


def _mean(answers: Sequence[Answered]) -> float:
    return sum(a.score for a in answers) / len(answers)


# --------------------------------------------------------------------------------- from one judge to the next


def drift_alarms(now: Sequence[Answered], before: Sequence[Answered], settings: AlarmsConfig) -> list[Alarm]:
    """Whether the judge in force flips more, or overrates itself more, on the questions both were asked."""
    earlier = {answer.question_id: answer for answer in before}
    pairs = [(answer, earlier[answer.question_id]) for answer in now if answer.question_id in earlier]
    flips = [
        (a.flip_rate - b.flip_rate, a.group)
        for a, b in pairs
        if a.flip_rate is not None and b.flip_rate is not None
    ]
    gaps = [
        (_gap(a) - _gap(b), a.group)
        for a, b in pairs
        if a.confidence is not None and b.confidence is not None
    ]
    return [
        *_rise("flip_rate_rose", "contradicts itself more when clips change places", flips, settings),
        *_rise("overconfidence_rose", "is surer of itself than it is right, by more", gaps, settings),
    ]


def _gap(answer: Answered) -> float:
    """How much surer than right: the calibrated confidence less 1, ½ or 0 for right, undecided or wrong."""
    assert answer.confidence is not None
    return answer.confidence - (0.5 if answer.score == 0.5 else float(answer.score > 0.5))


def _rise(name: str, what: str, changes: Sequence[tuple[float, str]], settings: AlarmsConfig) -> list[Alarm]:
    if not changes:
        return []
    rise = sum(change for change, _ in changes) / len(changes)
    test = sign_test([change for change, _ in changes], [group for _, group in changes])
    if rise <= settings.max_rise or test.p_above > settings.alpha / 2:
        return []
    return [
        Alarm(
            name,
            f"the judge {what} than the one before: by {rise:.2f} on {len(changes)} known answers "
            f"(p = {test.p_above:.2g})",
            rise,
            settings.max_rise,
        )
    ]


# -------------------------------------------------------------------------------------------- the generator


def divergence_alarms(
    training: Sequence[float],
    others: Mapping[str, tuple[Sequence[float], float]],
    prompts: Sequence[str],
    settings: AlarmsConfig,
) -> list[Alarm]:
    """Whether the judge that labels finds a generator better that something else finds worse.

    training: its score of each new take against the parent's, in [0, 1]. others: by name, the change of each
    take in what is to be compared, and the least mean fall (a positive number) that counts.
    """
    up = sign_test([score - 0.5 for score in training], prompts)
    if up.p_above > UP:
        return []
    rate = sum(training) / len(training)
    alarms = []
    for name, (changes, least) in others.items():
        test, change = sign_test(changes, prompts), sum(changes) / len(changes)
        if test.p_below <= settings.alpha / len(others) and change < -least:
            alarms.append(
                Alarm(
                    f"diverges_{name}",
                    f"the training judge prefers the new generator in {rate:.2f} of the gate's pairs, but "
                    f"{name.replace('_', ' ')} falls by {-change:.3f}, in {test.num_below} of "
                    f"{test.num_groups} prompts (p = {test.p_below:.2g})",
                    change,
                    -least,
                )
            )
    return alarms


def saturation_alarms(step: int | None, accuracy: float) -> list[Alarm]:
    """step: at which an update noted that training pairs alone went on improving, with that accuracy."""
    if step is None:
        return []
    return [
        Alarm(
            "implicit_accuracy_saturated",
            f"at step {step} the update told {accuracy:.3f} of its training pairs apart, and held-out pairs "
            "no better than before",
            accuracy,
            SATURATED,
        )
    ]


def collapse_alarms(
    now: Mapping[str, int], offered: Mapping[str, int], before: Mapping[str, int], settings: AlarmsConfig
) -> list[Alarm]:
    """Whether all pairs come from one source where there was a choice.

    now: pairs by source; offered: what could have become one; before: pairs of the round before.
    """
    total = sum(now.values())
    present = {source for counts in (now, offered, before) for source, n in counts.items() if n > 0}
    if total == 0 or len(present) < 2:
        return []
    source = max(now, key=lambda name: (now[name], name))
    share = now[source] / total
    if share <= settings.max_source_share:
        return []
    return [
        Alarm(
            "pairs_of_one_source",
            f"{share:.2f} of {total} pairs are {source}, and {', '.join(sorted(present - {source}))} gave "
            f"{total - now[source]}",
            share,
            settings.max_source_share,
        )
    ]

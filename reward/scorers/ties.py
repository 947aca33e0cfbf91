"""Two scores make three probabilities: Bradley-Terry with ties, and how a vote is drawn from them.

Torch-free; the same law as a loss is in reward/scorers/train.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from reward.question import ANSWERS, Answer


def probabilities(difference: float, threshold: float) -> dict[Answer, float]:
    """P(first), P(second) and P(tie) of two clips whose scores differ by `difference` (first − second).

    Rao & Kupper (1967), with π = e^score and θ = e^κ: P(first) = π₁ / (π₁ + θ π₂) = σ(Δ − κ), P(second) =
    σ(−Δ − κ), and P(tie) = (θ² − 1) π₁ π₂ / ((π₁ + θ π₂)(θ π₁ + π₂)) = (θ² − 1) σ(Δ − κ) σ(−Δ − κ).
    VideoReward trains with θ = 5 (arXiv 2501.13918). Both arguments in nats; κ = `threshold` ≥
    0, and κ = 0 is plain Bradley-Terry, without ties.
    """
    assert threshold >= 0, "JudgeConfig and reward heads hold no negative threshold"
    first, second = _log_sigmoid(difference - threshold), _log_sigmoid(-difference - threshold)
    # θ² − 1 = e^(2κ) (1 − e^(−2κ)), in logarithms: no overflow where κ is large
    tie = 0.0
    if threshold > 0:
        tie = math.exp(2 * threshold + math.log(-math.expm1(-2 * threshold)) + first + second)
    return {"first": math.exp(first), "second": math.exp(second), "tie": tie}


def draw(chances: Mapping[Answer, float], uniform: float, temperature: float) -> Answer:
    """The answer at `uniform` in [0, 1) of the inverse CDF of `chances` ^ (1 / `temperature`).

    Temperature 0 takes the most probable answer; first and second equally probable are a tie.
    """
    most = max(chances.values())
    if temperature == 0:
        best: list[Answer] = [answer for answer in ANSWERS if chances[answer] == most]
        return best[0] if len(best) == 1 else "tie"
    # divided by the largest first: at a low temperature all powers would be 0
    powers = {answer: (chances[answer] / most) ** (1 / temperature) for answer in ANSWERS}
    left = uniform * sum(powers.values())
    # the tie lies between the sides, so that one uniform for all dimensions leans to one side in all of them
    left -= powers["first"]
    if left < 0:
        return "first"
    return "tie" if left < powers["tie"] else "second"


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))

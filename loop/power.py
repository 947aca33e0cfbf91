"""What a gate can see: the win rate that it detects, and the prompts that a gain needs. Torch-free.

Win rates are means over prompts, each filmed with several seeds; comparisons of one prompt are alike, which
`clustering` (the intraclass correlation) measures. With n prompts of m seeds, the variance σ² of a single
comparison and clustering ρ, the standard error of the mean is √(σ² · (1 + (m−1)·ρ) / (n·m)).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from loop.config import CampaignConfig, GateConfig

POWER = 0.8  # the probability with which a gain shall be seen
GAIN = 0.6  # the win rate that the planning estimate is told for


@dataclass(frozen=True)
class Spread:
    """variance: of a single comparison's score in [0, 1]; clustering: ρ in [0, 1]."""

    variance: float
    clustering: float

    def error(self, num_prompts: float, num_seeds: int) -> float:
        """The standard error of a win rate."""
        design = 1 + (num_seeds - 1) * self.clustering
        return math.sqrt(self.variance * design / (num_prompts * num_seeds))


# before anything is measured: every comparison is won or lost, which is the widest spread there is, and the
# seeds of a prompt agree a little
ASSUMED = Spread(variance=0.25, clustering=0.2)


def attempt_alpha(alpha: float, attempt: int) -> float:
    """The error that attempt k = 1, 2, … may spend: α·6/(π²k²), which sums to α over all of them."""
    return alpha * 6 / (math.pi * attempt) ** 2


def measured_spread(scores: Sequence[float], prompts: Sequence[str]) -> Spread | None:
    """By one-way analysis of variance over prompts; None for fewer than two prompts.

    With one score a prompt the clustering cannot be told and is 0: it does not matter then. Prompts may have
    unequally many scores, as where a judge gave no answer (Donner 1986, International Statistical Review 54).
    """
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for prompt, score in zip(prompts, scores, strict=True):
        by_prompt[prompt].append(score)
    groups = list(by_prompt.values())
    num, freedom = len(scores), len(groups) - 1
    if freedom < 1:
        return None
    means, centre = [fmean(group) for group in groups], fmean(scores)
    between = sum(len(g) * (mean - centre) ** 2 for g, mean in zip(groups, means, strict=True)) / freedom
    if num == len(groups):
        return Spread(between, 0.0)
    inside = sum((x - mean) ** 2 for g, mean in zip(groups, means, strict=True) for x in g)
    within = inside / (num - len(groups))
    size = (num - sum(len(g) ** 2 for g in groups) / num) / freedom  # of a prompt, where all are alike
    total = within + (between - within) / size
    if total <= 0:
        return Spread(0.0, 0.0)
    return Spread(total, min(1.0, max(0.0, (between - within) / size / total)))


def detectable(spread: Spread, num_prompts: int, num_seeds: int, alpha: float, least: float) -> float:
    """The win rate that clears `least` with probability POWER, one-sided at `alpha`; above 1: none does.

    `statistics.win_rate_interval` never shows more than a rate times alpha^(1/n) of n prompts that agree.
    """
    if num_prompts == 1:  # the bound then speaks of this prompt alone, and its seeds are what is drawn
        alone = num_seeds == 1
        return least / alpha if alone else detectable(Spread(spread.variance, 0), num_seeds, 1, alpha, least)
    error = spread.error(num_prompts, num_seeds)
    return max(least + _reach(alpha, num_prompts) * error, least * alpha ** (-1 / num_prompts))


def prompts_needed(
    spread: Spread, num_seeds: int, alpha: float, least: float, win_rate: float = GAIN
) -> int | None:
    """Prompts with which `win_rate` is seen with probability POWER; None where it does not exceed `least`."""
    if win_rate <= least:
        return None

    def sees(num_prompts: int) -> bool:
        return detectable(spread, num_prompts, num_seeds, alpha, least) <= win_rate

    enough = 2
    while not sees(enough):
        enough *= 2
    return 2 + bisect_left(range(2, enough), True, key=sees)


def _reach(alpha: float, num_prompts: int) -> float:
    """t(1 − α) + t(POWER): how many standard errors a win rate must lie above what it has to clear.

    Of Student's distribution, whose quantiles the gate's bound has.
    """
    from scipy.special import stdtrit

    return float(stdtrit(num_prompts - 1, 1 - alpha) + stdtrit(num_prompts - 1, POWER))


def report(
    settings: GateConfig, spread: Spread | None, num_prompts: int, attempt: int, alpha: float
) -> dict[str, Any]:
    """The section `power` of gate.json; `spread` None is told as assumed."""
    used, least = spread or ASSUMED, 0.5 - settings.margin
    rate = detectable(used, num_prompts, settings.num_seeds, alpha, least)
    return {
        "detectable": rate if rate <= 1 else None,
        "power": POWER,
        "attempt": attempt,
        "alpha": alpha,
        "needed_above": least,
        "num_prompts": num_prompts,
        "num_seeds": settings.num_seeds,
        "standard_deviation": math.sqrt(used.variance),
        "clustering": used.clustering,
        "measured": spread is not None,
        "gain": GAIN,
        "prompts_for_gain": prompts_needed(used, settings.num_seeds, alpha, least),
    }


def sentence(power: dict[str, Any]) -> str:
    """`report` in words."""
    rate, needed = power["detectable"], power["prompts_for_gain"]
    seen = f"a win rate of {rate:.3f}" if rate is not None else "no win rate"
    how = "measured" if power["measured"] else "assumed"
    line = (
        f"with {power['num_prompts']} prompts of {power['num_seeds']} seeds the gate sees {seen} with "
        f"{power['power']:.0%} probability at attempt {power['attempt']} (α = {power['alpha']:.4f}, needed "
        f"above {power['needed_above']:.3f}; {how}: standard deviation {power['standard_deviation']:.2f}, "
        f"clustering {power['clustering']:.2f})"
    )
    if needed is None:
        return line
    return f"{line}; a win rate of {power['gain']:.2f} takes {needed} prompts"


def plan(config: CampaignConfig, num_prompts: int) -> str:
    """The estimate before the first gate, for the first attempt and the last one that there can be.

    Nothing is measured yet, so it takes the spread that is assumed.
    """
    settings, last = config.gate, config.rounds
    told = sentence(report(settings, None, num_prompts, 1, attempt_alpha(settings.alpha, 1)))
    if last < 2:
        return told
    rate = report(settings, None, num_prompts, last, attempt_alpha(settings.alpha, last))["detectable"]
    seen = f"{rate:.3f}" if rate is not None else "none"
    return f"{told}; at attempt {last} the gate sees {seen}"


def plan_of_config(config: CampaignConfig) -> str:
    """The same before any clip was read: of as many prompts as the gate part has groups."""
    part = config.data.split.gate
    num = part if isinstance(part, int) else len(part)
    return f"if the gate part has {num} prompts: {plan(config, num)}"

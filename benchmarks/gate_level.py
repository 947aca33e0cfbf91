"""How often the gate promotes what it must not, and sees what it says it sees, on made-up scores.

    python -m benchmarks.gate_level [--campaigns N] [--attempts K]

Wrong: the new generator's true win rate is just the one that it must exceed, ½ − margin, in every attempt;
the table has the share of attempts 1, 2, 3 that are promoted nevertheless, and of campaigns of K attempts
with any such promotion, which gate.alpha = 0.1 promises to be at most a tenth. Beside it is the same for a
plain bootstrap percentile. Seen: the share of promotions at the rate that loop/power.py calls detectable at
attempts 1 and 3, of which 80 % are promised.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from loop import power
from loop.config import GateConfig
from loop.statistics import bootstrap_mean, win_rate_interval

ALPHA = GateConfig().alpha
DRAWS = 4000


def scores(
    rng: np.random.Generator, num_prompts: int, num_seeds: int, rate: float, clustering: float, ties: float
) -> np.ndarray:
    """[num_prompts · num_seeds] wins, losses and ties of mean `rate`; a prompt's own rate varies (beta)."""
    decided = (rate - ties / 2) / (1 - ties)
    own = np.full(num_prompts, decided)
    if clustering and 0 < decided < 1:
        spread = 1 / clustering - 1
        own = rng.beta(decided * spread, (1 - decided) * spread, num_prompts)
    own = np.repeat(own, num_seeds)
    won = (rng.random(len(own)) < own).astype(float)
    return np.where(rng.random(len(own)) < ties, 0.5, won)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=400)
    parser.add_argument("--attempts", type=int, default=10)
    given = parser.parse_args(arguments)
    alphas = [power.attempt_alpha(ALPHA, k + 1) for k in range(given.attempts)]
    print("prompts × seeds, margin, ties, clustering")
    print("    | wrong at attempts 1, 2, 3; ever (percentile: ever) | seen at attempts 1, 3")
    for number, (prompts, seeds, margin, ties, clustering) in enumerate(
        [
            (12, 6, 0.1, 0.0, 0.2),  # quickstart
            (12, 6, 0.1, 0.6, 0.0),
            (12, 6, 0.0, 0.0, 0.2),
            (12, 1, 0.0, 0.0, 0.0),
            (6, 6, 0.0, 0.0, 0.2),
            (4, 2, 0.1, 0.0, 0.0),
            (50, 2, 0.0, 0.0, 0.2),
            (24, 2, 0.1, 0.8, 0.0),  # ties and losses alone
        ]
    ):
        rng = np.random.default_rng(number)
        groups = [str(i // seeds) for i in range(prompts * seeds)]
        least = 0.5 - margin
        wrong, plain = np.zeros(given.attempts), np.zeros(given.attempts)
        for trial in range(given.campaigns):
            for k, alpha in enumerate(alphas):
                found = scores(rng, prompts, seeds, least, clustering, ties).tolist()
                wrong[k] += win_rate_interval(found, groups, trial, alpha, DRAWS).low > least
                plain[k] += bootstrap_mean(found, groups, trial, 1 - 2 * alpha, DRAWS).low > least
        seen = [
            _seen(rng, prompts, seeds, least, ties, clustering, alphas[k], groups, given.campaigns)
            for k in (0, 2)
            if k < given.attempts
        ]
        rates = wrong / given.campaigns
        ever, percentile = (1 - np.prod(1 - n / given.campaigns) for n in (wrong, plain))
        print(
            f"{prompts} × {seeds}, {margin}, {ties}, {clustering} | "
            f"{', '.join(f'{r:.3f}' for r in rates[:3])}; {ever:.3f} ({percentile:.3f}) | {', '.join(seen)}",
            flush=True,
        )


def _seen(
    rng: np.random.Generator,
    prompts: int,
    seeds: int,
    least: float,
    ties: float,
    clustering: float,
    alpha: float,
    groups: list[str],
    num: int,
) -> str:
    """The share of promotions at the detectable rate; – where that is no rate, or these ties forbid it."""
    rate = least
    for _ in range(50):  # the variance depends on the rate
        variance = ties / 4 + max(0.0, rate - ties / 2) - rate**2
        rate = power.detectable(power.Spread(variance, clustering), prompts, seeds, alpha, least)
        if not ties / 2 < rate < 1 - ties / 2:
            return "–"
    kept = sum(
        win_rate_interval(
            scores(rng, prompts, seeds, rate, clustering, ties).tolist(), groups, trial, alpha, DRAWS
        ).low
        > least
        for trial in range(num)
    )
    return f"{kept / num:.2f} (at {rate:.3f})"


if __name__ == "__main__":
    main()

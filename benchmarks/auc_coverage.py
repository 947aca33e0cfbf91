"""How often the interval of two_sample_auc covers the truth, on made-up features.

    python -m benchmarks.auc_coverage [--repeats N]

46 features, of each prompt's clips alike (intraclass correlation 0.3); real clips differ from takes in one of
them by so many standard deviations. The truth is what the cross-validated AUC is in the mean over all
repeats, ½ where there is no difference. Covered: by the interval, and by the plain bootstrap that it widens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from unittest import mock

import numpy as np

from loop import two_sample
from loop.statistics import Interval

FEATURES, CLUSTERING = 46, 0.3
SIZES = (
    (24, 2, 6),
    (12, 2, 6),
    (6, 4, 4),
)  # prompts, real clips and takes of each; first quickstart's
DIFFERENCES = (0.0, 1.2, 2.5)


def clips(rng: np.random.Generator, prompts: np.ndarray, num: int, shift: float) -> np.ndarray:
    own = rng.normal(size=(len(prompts) * num, FEATURES))
    found = CLUSTERING**0.5 * np.repeat(prompts, num, axis=0) + (1 - CLUSTERING) ** 0.5 * own
    found[:, 0] += shift
    return found


def intervals(seed: int, size: tuple[int, int, int], shift: float) -> tuple[Interval, Interval]:
    """That of two_sample_auc, and the bootstrap's own."""
    num_prompts, num_real, num_made = size
    rng = np.random.default_rng([seed, *size])
    prompts = rng.normal(size=(num_prompts, FEATURES))
    groups = [[str(i // num) for i in range(num_prompts * num)] for num in (num_real, num_made)]
    plain: list[Interval] = []
    widen = two_sample.widened_for_folds

    def seen(found: Interval, *given: int) -> Interval:
        plain.append(found)
        return widen(found, *given)

    with mock.patch.object(two_sample, "widened_for_folds", seen):
        found = two_sample.two_sample_auc(
            clips(rng, prompts, num_real, shift), clips(rng, prompts, num_made, 0), *groups
        )
    return found, plain[0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args(arguments)
    print("prompts × (real + takes), difference: mean AUC; covered, width (plain bootstrap)")
    for size in SIZES:
        for shift in DIFFERENCES:
            both = [intervals(seed, size, shift) for seed in range(given.repeats)]
            truth = float(np.mean([found.value for found, _ in both])) if shift else 0.5
            told = [
                (np.mean([i.low <= truth <= i.high for i in of]), np.mean([i.high - i.low for i in of]))
                for of in zip(*both, strict=True)
            ]
            print(
                f"{size[0]} × ({size[1]} + {size[2]}), {shift}: {np.mean([f.value for f, _ in both]):.3f}; "
                f"{told[0][0]:.3f}, {told[0][1]:.2f} ({told[1][0]:.3f}, {told[1][1]:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()

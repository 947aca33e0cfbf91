"""How sure a verdict is, which verdicts are sure enough to train on, and how good such statements are.

Certainty of a calibrated kind of question is the probability that the preferred clip is better, in [0.5, 1];
of any other kind it is the vote margin times the share of ballots that did not flip, in [0, 1], and
`calibrated_for` stays None. The two scales have thresholds of their own (CertaintyConfig).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from reward.calibration import Calibrator, kind_of
from reward.config import CertaintyConfig
from reward.voting import DimensionVerdict, Verdict


def apply(verdict: Verdict, calibrators: Mapping[str, Calibrator]) -> Verdict:
    """The verdict with `certainty` and `calibrated_for` filled in; `calibrators` by kind of question.

    A known answer about a segment falls back on the calibrator of all known answers.
    """
    calibrator = calibrators.get(kind_of(verdict)) or calibrators.get(verdict.kind)
    dimensions: dict[str, DimensionVerdict] = {}
    for name, found in verdict.dimensions.items():
        if calibrator is None or not calibrator.covers(name):
            certainty, calibrated_for = vote_margin(found), None
        else:
            p = calibrator.probability(name, found, verdict.num_votes)
            certainty, calibrated_for = max(p, 1 - p), calibrator.kind
        dimensions[name] = replace(found, certainty=certainty, calibrated_for=calibrated_for)
    return replace(verdict, dimensions=dimensions)


def vote_margin(verdict: DimensionVerdict) -> float:
    """|2 · score − 1| · (1 − flip rate), in [0, 1]; without a complete ballot no flip is known."""
    return abs(2 * verdict.score - 1) * (1 - (verdict.flip_rate or 0.0))


def least_certainties(
    verdicts: Iterable[Verdict], dimension: str, config: CertaintyConfig
) -> dict[str, float]:
    """For each calibrated kind the certainty that reaches `config.target_precision` among `verdicts`.

    It is the lowest one, so that the mean certainty of the verdicts at or above it, which is the share of
    them that a calibrated judge has right, is at least the target; infinite where even the most certain
    verdict misses it. Verdicts without a side or with too few votes are left out. Empty without a target.
    """
    if config.target_precision is None:
        return {}
    by_kind: dict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        found = verdict.dimensions[dimension]
        if found.calibrated_for is not None and _no_side(verdict, dimension, config) is None:
            assert found.certainty is not None, "apply() fills the certainty in"
            by_kind[found.calibrated_for].append(found.certainty)
    return {kind: _least(certainties, config.target_precision) for kind, certainties in by_kind.items()}


def _least(certainties: list[float], target: float) -> float:
    values, counts = np.unique(
        certainties, return_counts=True
    )  # ascending: equal ones stand or fall together
    values, counts = values[::-1], counts[::-1]
    means = np.cumsum(values * counts) / np.cumsum(counts)
    reached = means >= target - 1e-12
    return float(values[reached][-1]) if reached.any() else float("inf")


def why_not_confident(
    verdict: Verdict, dimension: str, config: CertaintyConfig, least: Mapping[str, float] | None = None
) -> str | None:
    """None for a verdict to train on, else the reason to count.

    too_few_votes; tie; of a calibrated kind uncertain (certainty below min_probability) or, with a target
    precision, below_target_precision, for which `least` is what `least_certainties` says; of any other kind
    flips (more of them than max_flip_rate, or unknown) or uncertain (margin below min_margin).
    """
    found = verdict.dimensions[dimension]
    reason = _no_side(verdict, dimension, config)
    if reason is not None:
        return reason
    assert found.certainty is not None, "apply() fills the certainty in"
    if found.calibrated_for is None:
        flips = 1.0 if found.flip_rate is None else found.flip_rate
        if flips > config.max_flip_rate:
            return "flips"
        return None if found.certainty >= config.min_margin else "uncertain"
    if config.target_precision is not None:
        assert least is not None, "a target precision needs the certainties of all verdicts"
        return None if found.certainty >= least[found.calibrated_for] else "below_target_precision"
    return None if found.certainty >= config.min_probability else "uncertain"


def _no_side(verdict: Verdict, dimension: str, config: CertaintyConfig) -> str | None:
    found = verdict.dimensions[dimension]
    if verdict.num_votes < config.min_votes:
        return "too_few_votes"
    return "tie" if found.score == 0.5 or found.mode == "tie" else None


def ece(
    probabilities: Sequence[float] | np.ndarray,
    outcomes: Sequence[float] | np.ndarray,
    num_bins: int = 10,
    weights: np.ndarray | None = None,
) -> float:
    """Expected calibration error: Σ_bins share · |mean outcome − mean probability|; outcomes in [0, 1].

    Bins are of equal width. `weights` [N]: how often a row counts, such as in a bootstrap's draw.
    """
    p, y = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    w = np.ones(len(p)) if weights is None else weights
    bins = np.minimum((p * num_bins).astype(int), num_bins - 1)
    # share · |difference of means| = |sum of differences| / N
    gaps = np.bincount(bins, weights=w * (y - p), minlength=num_bins)
    return float(np.abs(gaps).sum() / w.sum())


def brier_skill(
    probabilities: Sequence[float] | np.ndarray,
    outcomes: Sequence[float] | np.ndarray,
    weights: np.ndarray | None = None,
) -> float:
    """1 − Brier score / that of always saying ½, which is what an order-free base rate is.

    Above zero: better than knowing nothing. Where all outcomes are ½ there is nothing to know: 0.
    """
    p, y = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    w = np.ones(len(p)) if weights is None else weights
    base = float(np.sum(w * (0.5 - y) ** 2))
    return 0.0 if base == 0 else 1 - float(np.sum(w * (p - y) ** 2)) / base


def coverage_accuracy(
    certainties: Sequence[float] | np.ndarray,
    outcomes: Sequence[float] | np.ndarray,
    coverages: Sequence[float],
) -> list[float]:
    """The mean outcome among the most certain share of rows, for each share in (0, 1].

    Of rows that are equally certain none comes first: a share that ends among them takes their mean.
    """
    c, y = np.asarray(certainties, dtype=float), np.asarray(outcomes, dtype=float)
    values, level, counts = np.unique(-c, return_inverse=True, return_counts=True)
    means = np.bincount(level, weights=y, minlength=len(values)) / counts
    right = np.concatenate([[0.0], np.cumsum(means[level][np.argsort(-c, kind="stable")])])
    ranks = np.asarray(coverages, dtype=float) * len(c)
    return (np.interp(ranks, np.arange(len(c) + 1), right) / ranks).tolist()


def pce(r: np.ndarray, q: float, tau: float) -> np.ndarray:
    """Preference-certainty estimation σ((R − Q) / τ) (Dual-IPO; the σ is the natural reading of P(R > Q)).

    `r` [N] and `q` in nats, per token where R is length-normalised.
    """
    if tau <= 0:
        raise ValueError(f"τ of PCE must be positive, got {tau}")
    return 1 / (1 + np.exp(-(np.asarray(r, dtype=float) - q) / tau))

"""How sure a verdict is: a calibrator per kind of question, its measures, and PCE for the judge's training.

Certainty of a calibrated kind is the probability that the preferred clip is better, in [0.5, 1]; of any
other kind it is the vote margin times the share of ballots that did not flip, in [0, 1], and
`calibrated_for` stays None. The two scales have thresholds of their own (CertaintyConfig).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from reward.config import CertaintyConfig
from reward.question import Answer
from reward.voting import DimensionVerdict, Verdict

POOLED = "pooled"  # the slope over all dimensions, for those with too few labels of their own
_OUTCOME: dict[Answer, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Calibrator:
    """P(first is better) = σ(slope · logit(smoothed score)), for one kind of question.

    One slope a dimension and a pooled one. There is no intercept, so the two orders of a question add up
    to 1 exactly.
    """

    kind: str
    slopes: dict[str, float]
    num_labels: dict[str, int]

    def probability(self, dimension: str, verdict: DimensionVerdict, num_votes: int) -> float:
        """P(the first clip is better) in `dimension`."""
        slope = self.slopes.get(dimension, self.slopes[POOLED])
        return _sigmoid(slope * smoothed_logit(verdict.score, num_votes))


def smoothed_logit(score: float, num_votes: int) -> float:
    """logit of (n · score + ½) / (n + 1): unanimous votes stay finite and grow with n; antisymmetric."""
    p = (num_votes * score + 0.5) / (num_votes + 1)
    return math.log(p / (1 - p))


def fit(
    kind: str, verdicts: Sequence[Verdict], answers: Sequence[Mapping[str, Answer]], min_labels: int = 50
) -> Calibrator:
    """Fit on verdicts of `kind` whose true answers are known; a true tie counts half for each side.

    Raises ValueError where there is no label at all.
    """
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for verdict, truth in zip(verdicts, answers, strict=True):
        assert verdict.kind == kind, f"a verdict of kind {verdict.kind} cannot calibrate {kind}"
        if verdict.num_votes == 0:
            continue  # no evidence either way: σ(0) = ½ whatever the slope
        for dimension, answer in truth.items():
            row = smoothed_logit(verdict.dimensions[dimension].score, verdict.num_votes), _OUTCOME[answer]
            rows[dimension].append(row)
            rows[POOLED].append(row)
    if POOLED not in rows:
        raise ValueError(
            f"no labelled verdict of kind {kind!r} to calibrate with; every vote was an abstention"
        )
    slopes = {name: _slope(r) for name, r in rows.items() if name == POOLED or len(r) >= min_labels}
    return Calibrator(kind, slopes, {name: len(r) for name, r in rows.items()})


def _slope(rows: list[tuple[float, float]]) -> float:
    """Platt's slope without an intercept; ties enter as half a row of each outcome."""
    from sklearn.linear_model import LogisticRegression

    x = np.array([row[0] for row in rows])
    y = np.array([row[1] for row in rows])
    if not np.any(x):
        return 0.0
    # the mirror images make the classes balanced and present, and leave the solution as it is
    features = np.concatenate([x, x, -x, -x])[:, None]
    labels = np.repeat([1, 0, 0, 1], len(x))
    weights = np.concatenate([y, 1 - y, y, 1 - y])
    keep = weights > 0
    model = LogisticRegression(
        fit_intercept=False, C=10.0
    )  # mild: a perfect judge on few labels stays finite
    model.fit(features[keep], labels[keep], sample_weight=weights[keep])
    # a judge that is wrong more often than right says nothing; using it upside down would be a bet
    return max(0.0, float(model.coef_[0, 0]))


def apply(verdict: Verdict, calibrators: Mapping[str, Calibrator]) -> Verdict:
    """The verdict with `certainty` and `calibrated_for` filled in; `calibrators` by kind of question."""
    calibrator = calibrators.get(verdict.kind)
    dimensions: dict[str, DimensionVerdict] = {}
    for name, found in verdict.dimensions.items():
        if calibrator is None:
            certainty, calibrated_for = vote_margin(found), None
        else:
            p = calibrator.probability(name, found, verdict.num_votes)
            certainty, calibrated_for = max(p, 1 - p), calibrator.kind
        dimensions[name] = replace(found, certainty=certainty, calibrated_for=calibrated_for)
    return replace(verdict, dimensions=dimensions)


def vote_margin(verdict: DimensionVerdict) -> float:
    """|2 · score − 1| · (1 − flip rate), in [0, 1]; without a complete ballot no flip is known."""
    return abs(2 * verdict.score - 1) * (1 - (verdict.flip_rate or 0.0))


def why_not_confident(verdict: Verdict, dimension: str, config: CertaintyConfig) -> str | None:
    """None for a verdict to train on, else the reason to count: too_few_votes, tie or uncertain."""
    found = verdict.dimensions[dimension]
    if verdict.num_votes < config.min_votes:
        return "too_few_votes"
    if found.score == 0.5 or found.mode == "tie":
        return "tie"
    assert found.certainty is not None, "apply() fills the certainty in"
    least = config.min_margin if found.calibrated_for is None else config.min_probability
    return None if found.certainty >= least else "uncertain"


def save(calibrators: Mapping[str, Calibrator], path: Path) -> None:
    """Write all calibrators as one JSON file, keyed by kind."""
    rows = {kind: {"slopes": c.slopes, "num_labels": c.num_labels} for kind, c in sorted(calibrators.items())}
    path.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def load(path: Path) -> dict[str, Calibrator]:
    """Read what `save` wrote."""
    rows = json.loads(path.read_text())
    return {kind: Calibrator(kind, row["slopes"], row["num_labels"]) for kind, row in rows.items()}


def ece(probabilities: Sequence[float], outcomes: Sequence[float], num_bins: int = 10) -> float:
    """Expected calibration error: Σ_bins share · |mean outcome − mean probability|; outcomes in [0, 1]."""
    p, y = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    bins = np.minimum((p * num_bins).astype(int), num_bins - 1)
    gaps = [(bins == b).mean() * abs(y[bins == b].mean() - p[bins == b].mean()) for b in set(bins.tolist())]
    return float(sum(gaps))


def brier_skill(probabilities: Sequence[float], outcomes: Sequence[float]) -> float:
    """1 − Brier score / that of always saying ½, which is what an order-free base rate is."""
    p, y = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    base = float(np.mean((0.5 - y) ** 2))
    return 0.0 if base == 0 else 1 - float(np.mean((p - y) ** 2)) / base


def pce(r: np.ndarray, q: float, tau: float) -> np.ndarray:
    """Preference-certainty estimation σ((R − Q) / τ) (Dual-IPO; the σ is the natural reading of P(R > Q)).

    `r` [N] and `q` in nats, per token where R is length-normalised.
    """
    if tau <= 0:
        raise ValueError(f"τ of PCE must be positive, got {tau}")
    return 1 / (1 + np.exp(-(np.asarray(r, dtype=float) - q) / tau))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

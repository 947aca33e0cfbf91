"""Calibrators: from a verdict's score to the probability that the first clip is better, by kind of question.

Every calibrator is antisymmetric: of the same clips in the other order it says 1 − p, a slope to the last bit
but one, a curve exactly. A slope on the logit (Platt's scaling without an intercept, which is temperature
scaling with T = 1 / slope) takes few labels; an isotonic curve takes many, and assumes nothing but that a
higher score never means less.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reward.question import Answer
from reward.voting import DimensionVerdict, Verdict

POOLED = "pooled"  # over all dimensions, for those with too few labels of their own
KNOWN_SEGMENT = "known_segment"  # known answers about one segment, where enough of them are labelled
_OUTCOME: dict[Answer, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}
Rows = list[tuple[float, float]]  # (smoothed logit, outcome: 1 first is better, 0 second, ½ tie)


@dataclass(frozen=True)
class Curve:
    """An antisymmetric, non-decreasing f with f(0) = ½, given by its right half.

    knots > 0 ascending, values in [½, 1) non-decreasing. Between (0, ½) and the knots f is linear, beyond the
    last knot constant, and f(−x) = 1 − f(x). The last holds for floats, too: for v in [½, 1] the difference
    1 − v is exact (Sterbenz), so 1 − (1 − v) is v again.
    """

    knots: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, x: float) -> float:
        half = float(np.interp(abs(x), (0.0, *self.knots), (0.5, *self.values)))
        return half if x >= 0 else 1 - half


@dataclass(frozen=True)
class Calibrator:
    """P(first is better) for one kind of question, by dimension: σ(slope · x) or curve(x).

    x is the smoothed logit of the score. A dimension has a slope or a curve of its own, or else takes the
    pooled one. Neither has an intercept, so the two orders of a question add up to 1.
    """

    kind: str
    slopes: dict[str, float]
    num_labels: dict[str, int]
    curves: dict[str, Curve] = field(default_factory=dict)

    def covers(self, dimension: str) -> bool:
        """Whether labels say anything about `dimension`, be it by the pooled ones."""
        return any(name in self.slopes or name in self.curves for name in (dimension, POOLED))

    def probability(self, dimension: str, verdict: DimensionVerdict, num_votes: int) -> float:
        """P(the first clip is better) in `dimension`, which must be covered."""
        x = smoothed_logit(verdict.score, num_votes)
        name = dimension if dimension in self.slopes or dimension in self.curves else POOLED
        curve = self.curves.get(name)
        return _sigmoid(self.slopes[name] * x) if curve is None else curve(x)


def smoothed_logit(score: float, num_votes: int) -> float:
    """logit of (n · score + ½) / (n + 1): unanimous votes stay finite and grow with n; antisymmetric."""
    p = (num_votes * score + 0.5) / (num_votes + 1)
    return math.log(p / (1 - p))


def kind_of(verdict: Verdict) -> str:
    """The kind that calibration tells apart: a known answer about a segment is one of its own.

    It is not the kind `segment` of the label stage. A known answer sets a clean segment against one with a
    flaw of a list, or says a tie that is one; two takes of one clip are both flawed, in ways that no list
    has, and are alike. A judge that is 95 % right on the former may be near a coin on the latter, and no
    number of labels of the former tells.
    """
    is_known_segment = verdict.kind == "known" and verdict.segment is not None
    return KNOWN_SEGMENT if is_known_segment else verdict.kind


def fit_known(
    verdicts: Sequence[Verdict],
    answers: Sequence[Mapping[str, Answer]],
    min_labels: int = 50,
    isotonic_labels: int | None = 1000,
) -> dict[str, Calibrator]:
    """Calibrators of known answers by kind: segments have one of their own where both sorts have labels.

    With fewer than `min_labels` answered questions of either sort, "known" is fitted on all together.
    Raises ValueError where there is no label at all.
    """
    labelled = list(zip(verdicts, answers, strict=True))
    sorts: dict[str, list[tuple[Verdict, Mapping[str, Answer]]]] = defaultdict(list)
    for verdict, truth in labelled:
        sorts[kind_of(verdict)].append((verdict, truth))
    answered = [sum(v.num_votes > 0 for v, _ in sorts[kind]) for kind in ("known", KNOWN_SEGMENT)]
    if min(answered) < min_labels:
        sorts = {"known": labelled}
    return {
        kind: fit(kind, [v for v, _ in rows], [a for _, a in rows], min_labels, isotonic_labels)
        for kind, rows in sorts.items()
    }


def fit(
    kind: str,
    verdicts: Sequence[Verdict],
    answers: Sequence[Mapping[str, Answer]],
    min_labels: int = 50,
    isotonic_labels: int | None = 1000,
    *,
    pooled: bool = True,
) -> Calibrator:
    """Fit on verdicts of `kind` whose true answers are known; a true tie counts half for each side.

    min_labels: that a dimension needs for a fit of its own. isotonic_labels: from as many labels on a
    dimension has a curve in place of a slope, and from as many questions on the pooled fit; None = never.
    pooled: also fit over all dimensions. Raises ValueError where there is no label at all.
    """
    rows: dict[str, Rows] = defaultdict(list)
    num_questions = 0
    for verdict, truth in zip(verdicts, answers, strict=True):
        assert kind in (verdict.kind, kind_of(verdict)), (
            f"a verdict of {verdict.kind} cannot calibrate {kind}"
        )
        if verdict.num_votes == 0:
            continue  # no evidence either way: ½ whatever the fit
        num_questions += 1
        for dimension, answer in truth.items():
            row = smoothed_logit(verdict.dimensions[dimension].score, verdict.num_votes), _OUTCOME[answer]
            rows[dimension].append(row)
            rows[POOLED].append(row)
    if POOLED not in rows:
        raise ValueError(
            f"no labelled verdict of kind {kind!r} to calibrate with; every vote was an abstention"
        )
    slopes, curves = {}, {}
    for name, of in rows.items():
        wanted = pooled if name == POOLED else len(of) >= min_labels
        if not wanted:
            continue
        # one question labels all dimensions at once: its labels are one piece of evidence
        num = num_questions if name == POOLED else len(of)
        if isotonic_labels is not None and num >= isotonic_labels:
            curves[name] = fit_curve(of)
        else:
            slopes[name] = _slope(of)
    return Calibrator(kind, slopes, {name: len(of) for name, of in rows.items()}, curves)


def _slope(rows: Rows) -> float:
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


def fit_curve(rows: Rows) -> Curve:
    """The isotonic regression of outcomes on x, of the rows and their mirror images (−x, 1 − y).

    It is antisymmetric. The loss S(f) = Σ (y − f(x))² + (1 − y − f(−x))² does not change if f is replaced by
    g(x) = 1 − f(−x), which is non-decreasing as f is: the two sums change places. S is strictly convex in the
    values at the data, so its minimiser is unique there, f = g. It is enough to keep the right half.
    Where a judge is wrong more often than right, both halves are pooled into one block of mean ½.

    At the largest |x| one right and one wrong label are added. All values are at most the last block's, and
    that is at most (k + 1) / (k + 2) with k labels in it (Laplace's rule of succession): never certain.
    """
    from sklearn.isotonic import IsotonicRegression

    x = np.array([row[0] for row in rows])
    y = np.array([row[1] for row in rows])
    last = np.abs(x).max()
    if last == 0:
        return Curve((), ())
    x, y = np.append(x, [last, last]), np.append(y, [1.0, 0.0])
    model = IsotonicRegression().fit(np.concatenate([x, -x]), np.concatenate([y, 1 - y]))
    right = model.X_thresholds_ > 0
    values = np.maximum(model.y_thresholds_[right], 0.5)  # below it by rounding alone
    return Curve(tuple(model.X_thresholds_[right].tolist()), tuple(values.tolist()))


def save(calibrators: Mapping[str, Calibrator], path: Path) -> None:
    """Write all calibrators as one JSON file, keyed by kind."""
    rows: dict[str, dict[str, Any]] = {}
    for kind, c in sorted(calibrators.items()):
        rows[kind] = {"slopes": c.slopes, "num_labels": c.num_labels}
        if c.curves:
            rows[kind]["curves"] = {name: vars(curve) for name, curve in c.curves.items()}
    path.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def load(path: Path) -> dict[str, Calibrator]:
    """Read what `save` wrote."""
    return {
        kind: Calibrator(
            kind,
            row["slopes"],
            row["num_labels"],
            {name: Curve(tuple(c["knots"]), tuple(c["values"])) for name, c in row.get("curves", {}).items()},
        )
        for kind, row in json.loads(path.read_text()).items()
    }


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

"""How well a line tells generated clips from real ones by model-free features: ½ cannot, 1 always can.

It is no Fréchet distance and no perceptual quality: it sees what the features see (docs/measures.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from loop.statistics import Interval, bootstrap, widened_for_folds
from loop.subject import small_frames

FEWEST_PROMPTS = 5  # with clips of both kinds
FEWEST_CLIPS = 20  # of each kind
_BINS = 8
_NUM_FOLDS = 5


class TooFewClips(ValueError):
    """There are not clips enough for an honest number; the message says how many are needed."""


def clip_features(frames: np.ndarray, measured: Mapping[str, float]) -> np.ndarray:
    """float64 [46] of uint8 [T, H, W, 3]; `measured` is what `measure` says of the clip.

    Colours: by channel, the mean, the deviation and a histogram of 8 levels (30). Edges: the shares of 8
    orientations in the gradients of brightness, the mean gradient and how much it varies over frames (10).
    Time: motion magnitude, motion smoothness, flicker, subject drift, and the mean and deviation of the
    change between frames (6).
    """
    small = small_frames(frames)
    levels = np.stack([np.bincount((small[..., c] // 32).ravel(), minlength=_BINS) for c in range(3)])
    grey = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in small]).astype(np.float64) / 255
    changes = np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2))
    names = ("motion_magnitude", "motion_smoothness", "flicker", "subject_drift")
    time = [*(measured[name] for name in names), changes.mean(), changes.std()]
    colours = [small.mean(axis=(0, 1, 2)) / 255, small.std(axis=(0, 1, 2)) / 255]
    return np.concatenate([*colours, levels.ravel() / small[..., 0].size, _edges(grey), time])


def two_sample_auc(
    real: np.ndarray, made: np.ndarray, real_groups: Sequence[str], made_groups: Sequence[str]
) -> Interval:
    """Area under the ROC curve of a cross-validated logistic regression, with a 95 % interval.

    real [N, F], made [M, F]; a group is a prompt, with all sources that share it. No group is in the training
    and the test half of a fold, and groups with clips of one kind alone are left out. Clips are compared with
    those of their own fold, whose scores come from the same line: the share of pairs in which the real clip
    has the higher score, ties half. For samples of one kind that is ½ in the mean, more often somewhat below
    than above. The interval resamples groups and is widened for what the lines owe to their training data.
    Raises TooFewClips.
    """
    both = set(real_groups) & set(made_groups)
    kept = [[i for i, g in enumerate(groups) if g in both] for groups in (real_groups, made_groups)]
    num_real, num_made = map(len, kept)
    if len(both) < FEWEST_PROMPTS or min(num_real, num_made) < FEWEST_CLIPS:
        raise TooFewClips(
            f"{len(both)} prompts have real and generated clips, {num_real} and {num_made} in all; it takes "
            f"{FEWEST_PROMPTS} prompts and {FEWEST_CLIPS} clips of each kind"
        )
    features = np.concatenate([real[kept[0]], made[kept[1]]])
    groups = [*(real_groups[i] for i in kept[0]), *(made_groups[i] for i in kept[1])]
    is_real = np.arange(len(groups)) < num_real
    scores, fold = _held_out_scores(features, is_real, groups)
    together = (fold[is_real][:, None] == fold[~is_real][None]).astype(float)
    difference = scores[is_real][:, None] - scores[~is_real][None]
    wins = together * ((difference > 0) + (difference == 0) / 2)

    def auc(weights: np.ndarray) -> float:
        reals, mades = weights[:num_real], weights[num_real:]
        return float(reals @ wins @ mades / (reals @ together @ mades))

    return widened_for_folds(bootstrap(auc, groups, seed=0), len(both), _NUM_FOLDS)


def _held_out_scores(
    features: np.ndarray, is_real: np.ndarray, groups: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Every row's log-odds of "real" from the fold that holds out its group, and the number of that fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores, fold = np.empty(len(features)), np.empty(len(features), int)
    folds = GroupKFold(_NUM_FOLDS).split(features, is_real, groups)
    for number, (others, own) in enumerate(folds):
        line = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
        )
        line.fit(features[others], is_real[others])
        scores[own], fold[own] = line.decision_function(features[own]), number
    return scores, fold


def _edges(grey: np.ndarray) -> np.ndarray:
    """float64 [10] of brightness [T, H, W] in [0, 1]: shares of orientations, mean gradient, its spread."""
    down, across = np.gradient(grey, axis=(1, 2))
    size = np.hypot(down, across)
    turn = (np.arctan2(down, across) % np.pi) / np.pi  # an edge has no direction, only an orientation
    bins = np.minimum((turn * _BINS).astype(int), _BINS - 1)
    shares = np.bincount(bins.ravel(), size.ravel(), minlength=_BINS)
    of_frame = size.mean(axis=(1, 2))
    return np.array([*(shares / max(shares.sum(), 1e-12)), of_frame.mean(), of_frame.std()])

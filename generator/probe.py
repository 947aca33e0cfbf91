"""A linear probe that tells real clips from generated ones by coarse statistics: an early sign of a leak.

If a line through a few means and deviations parts them, a policy can learn to tell them apart by the road
they came (codec, scale, autoencoder) instead of by what they show. A high value alone proves no leak, since
weak takes look different; one that stays high while takes get better is a reason to look at the road.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def pixel_statistics(frames: np.ndarray) -> np.ndarray:
    """float64 [19] of uint8 [T, H, W, 3]: level, range and sharpness of colours, change over time."""
    x = frames.astype(np.float64) / 255
    fine = np.abs(np.diff(x, n=2, axis=2))  # what a codec or an autoencoder smooths away first
    in_time = np.abs(np.diff(x, axis=0)) if len(x) > 1 else np.zeros_like(x)
    low, high = np.quantile(x, [0.05, 0.95], axis=(0, 1, 2))  # a wrong colour range moves these
    means = [values.mean(axis=(0, 1, 2)) for values in (x, fine, in_time)]
    return np.concatenate([*means, x.std(axis=(0, 1, 2)), low, high, [in_time.std()]])


def latent_statistics(latents: Tensor) -> np.ndarray:
    """float64 [3 C] of normalised latents [C, T', H', W']: channels' means, spreads, changes in time."""
    x = latents.double().cpu().numpy()
    in_time = np.abs(np.diff(x, axis=1)).mean(axis=(1, 2, 3)) if x.shape[1] > 1 else np.zeros(len(x))
    return np.concatenate([x.mean(axis=(1, 2, 3)), x.std(axis=(1, 2, 3)), in_time])


def held_out_scores(features: np.ndarray, is_real: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """A logistic regression's log-odds of "real" for every row, from folds that hold out the row's group.

    features [N, F]; is_real bool [N]; rows of one group (a caption) are never on both sides. Raises
    ValueError where there are not two groups with both kinds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = np.asarray(groups)
    both = set(names[is_real]) & set(names[~is_real])
    if len(both) < 2:
        raise ValueError(f"the probe needs two captions with real and generated clips, got {len(both)}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = GroupKFold(n_splits=num_folds(len(both)))
    return cross_val_predict(probe, features, is_real, groups=names, cv=folds, method="decision_function")


def num_folds(num_groups: int) -> int:
    """Of `held_out_scores`, with so many groups of both kinds."""
    return min(5, num_groups)

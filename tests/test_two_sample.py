"""Telling takes from real clips: the AUC's value, its folds, its interval, and when it is left out."""

import numpy as np
import pytest

from loop.embedded import world
from loop.measure import measure
from loop.two_sample import TooFewClips, _held_out_scores, clip_features, two_sample_auc

GROUPS = [f"prompt {i % 12}" for i in range(48)]


def features(rng: np.random.Generator, offset: float = 0.0) -> np.ndarray:
    return rng.normal(size=(48, 4)) + np.array([offset, 0, 0, 0])


def test_samples_of_one_kind_are_not_told_apart_and_others_as_far_as_they_differ():
    rng = np.random.default_rng(0)
    same = [two_sample_auc(features(rng), features(rng), GROUPS, GROUPS) for _ in range(12)]
    # ½ in the mean, but folds that learn from each other often end a little below it, and seldom far above
    assert np.mean([found.value for found in same]) == pytest.approx(0.5, abs=0.08)
    assert sum(found.low <= 0.5 <= found.high for found in same) >= 7
    apart = [two_sample_auc(features(rng, 1.5), features(rng), GROUPS, GROUPS) for _ in range(6)]
    # two normal distributions 1.5 deviations apart: Φ(1.5 / √2) = 0.856
    assert np.mean([found.value for found in apart]) == pytest.approx(0.856, abs=0.04)
    assert all(found.low < found.value < found.high and found.num == 96 for found in apart)
    assert two_sample_auc(features(rng, 20), features(rng), GROUPS, GROUPS).value == 1


def test_the_interval_covers_a_half_where_there_is_no_difference():
    """Six prompts of eight clips and 46 features, hardly more than it takes."""
    rng, groups, covered, plain = np.random.default_rng(4), [str(i // 4) for i in range(24)], 0, 0
    for _ in range(60):
        found = two_sample_auc(rng.normal(size=(24, 46)), rng.normal(size=(24, 46)), groups, groups)
        covered += found.low <= 0.5 <= found.high
        # the bootstrap alone: √(1 + 5/4) for the folds and t(.975) with 5 degrees of freedom less
        end = found.low if found.value > 0.5 else found.high
        plain += abs(0.5 - found.value) <= abs(end - found.value) / (1.5 * 2.5706 / 1.9600)
    assert plain < 54 and covered >= 55


def test_no_prompt_is_on_both_sides_of_a_fold():
    rng = np.random.default_rng(1)
    groups = [*GROUPS, *GROUPS]
    _, fold = _held_out_scores(rng.normal(size=(96, 4)), np.arange(96) < 48, groups)
    folds_of = {name: {int(f) for f, g in zip(fold, groups, strict=True) if g == name} for name in GROUPS}
    assert all(len(found) == 1 for found in folds_of.values()) and len(set(fold)) == 5
    # what is known of a prompt's own clips must not help: here kind follows from the prompt alone
    name_of = {name: i for i, name in enumerate(sorted(set(GROUPS)))}
    one_hot = np.eye(12)[[name_of[g] for g in GROUPS]]
    assert two_sample_auc(one_hot, one_hot, GROUPS, GROUPS).value == 0.5


def test_too_few_clips_or_prompts_are_said():
    rng = np.random.default_rng(2)
    with pytest.raises(
        TooFewClips, match="12 prompts have real and generated clips, 12 and 48 in all; it ta"
    ):
        two_sample_auc(features(rng)[:12], features(rng), GROUPS[:12], GROUPS)
    four = [f"prompt {i % 4}" for i in range(48)]
    with pytest.raises(TooFewClips, match="4 prompts"):
        two_sample_auc(features(rng), features(rng), four, GROUPS)


def test_features_see_colours_edges_and_time():
    still = np.full((5, 16, 16, 3), 51, np.uint8)
    found = clip_features(still, measure(still))
    assert found[:3] == pytest.approx(0.2) and found[3:6] == pytest.approx(0)
    assert found[6:30].reshape(3, 8)[:, 1] == pytest.approx(1)  # all pixels are of level 51 // 32
    assert found[30:] == pytest.approx([0] * 10 + [0, 1, 0, 0, 0, 0])  # smoothness of a still is 1
    stripes = np.zeros((5, 16, 16, 3), np.uint8)
    stripes[:, :, 8:] = 255  # brightness grows to the right alone
    assert clip_features(stripes, measure(stripes))[30:38] == pytest.approx([1] + [0] * 7)

    rng = np.random.default_rng(3)
    captions = world.combinations()[::16]

    def sample(worse):
        rows = []
        for i in range(24):
            frames = world.render(world.draw_scene(*captions[i % 6], rng), 5)
            rows.append(clip_features(frames // 2 if worse else frames, measure(frames)))
        return np.stack(rows)

    names = [str(i % 6) for i in range(24)]
    assert two_sample_auc(sample(False), sample(True), names, names).value == 1

"""The leakage probe: it sees a road that differs, and nothing where only the labels do."""

import numpy as np
import pytest
import torch

from generator.probe import held_out_scores, latent_statistics, pixel_statistics
from loop.embedded import world
from loop.steps.leakage import auc

CAPTIONS = [world.caption_of(*c) for c in world.combinations()[::8]]


def clips(num: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(seed)
    chosen = [CAPTIONS[i % len(CAPTIONS)] for i in range(num)]
    return [world.render(world.draw_scene(*world.parse_caption(c), rng)) for c in chosen], chosen


def found_auc(real: list[np.ndarray], made: list[np.ndarray], groups: list[str]) -> float:
    features = np.stack([pixel_statistics(f) for f in (*real, *made)])
    is_real = np.arange(len(features)) < len(real)
    interval = auc(held_out_scores(features, is_real, groups), is_real, groups)
    assert interval.low <= interval.value <= interval.high and interval.num == len(groups)
    return interval.value


def test_a_road_of_its_own_is_seen_and_equal_roads_are_not():
    (real, names), (other, more) = clips(48, 1), clips(48, 2)
    assert found_auc(real, other, names + more) == pytest.approx(0.5, abs=0.15)
    offset = [(f + 2).astype(np.uint8) for f in other]  # two of 255 levels, as a wrong colour range leaves
    assert found_auc(real, offset, names + more) > 0.95


def test_statistics_are_those_of_the_clip():
    still = np.full((5, 8, 8, 3), 51, np.uint8)
    found = pixel_statistics(still)
    means, ranges = found[:3], found[12:18]
    assert means == pytest.approx(0.2) and ranges == pytest.approx(0.2)
    assert [*found[3:12], found[18]] == pytest.approx([0] * 10)  # nothing is sharp, moves or spreads
    latents = torch.zeros(2, 3, 4, 4)
    latents[1] = torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    assert latent_statistics(latents)[[0, 1, 4, 5]] == pytest.approx([0, 7 / 3, 0, 1.5])


def test_captions_are_never_on_both_sides():
    with pytest.raises(ValueError, match="two captions"):
        held_out_scores(np.zeros((4, 2)), np.array([True, True, False, False]), ["a", "b", "a", "c"])

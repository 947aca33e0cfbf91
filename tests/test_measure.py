"""Motion and flicker from pixels: each measure moves with what it is named for, and by how much is known."""

import numpy as np
import pytest

from loop.embedded import world
from loop.measure import measure

TIMES = np.arange(world.NUM_FRAMES)


def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [world.render(world.draw_scene(*c, rng)) for c in world.combinations()[::8]]


def mean(name: str, frames: list[np.ndarray]) -> float:
    return float(np.mean([measure(f)[name] for f in frames]))


def test_magnitude_is_pixels_a_frame_over_the_diagonal():
    # 13 pixels in 16 steps on a diagonal of 45.25
    assert mean("motion_magnitude", clips()) == pytest.approx(13 / 16 / np.hypot(32, 32), rel=0.25)


def test_magnitude_of_a_still_is_zero_and_of_half_the_speed_half():
    whole = mean("motion_magnitude", clips())
    assert mean("motion_magnitude", [f[TIMES * 0] for f in clips()]) < 1e-4
    rng = np.random.default_rng(5)
    half = [world.render(world.draw_scene(*c, rng), 33)[:17] for c in world.combinations()[::8]]
    assert mean("motion_magnitude", half) == pytest.approx(whole / 2, rel=0.25)


def test_magnitude_does_not_depend_on_the_size():
    small = clips()[0]
    large = np.repeat(np.repeat(small, 8, axis=1), 8, axis=2)
    assert measure(large)["motion_magnitude"] == pytest.approx(measure(small)["motion_magnitude"], rel=0.3)


def test_smoothness_falls_with_jerks():
    steady = mean("motion_smoothness", clips())
    jerky = mean("motion_smoothness", [f[TIMES // 3 * 3] for f in clips()])
    shuffled = mean("motion_smoothness", [f[np.random.default_rng(0).permutation(TIMES)] for f in clips()])
    assert steady > 0.95
    assert jerky < 0.75
    assert shuffled < jerky - 0.1
    assert mean("motion_smoothness", [f[TIMES * 0] for f in clips()]) == 1


def test_flicker_is_the_second_difference_of_brightness():
    frames = np.zeros((9, 40, 60, 3), np.uint8)
    frames[::2] = 51  # on, off: every second difference is 2 × 51 of 255
    assert measure(frames)["flicker"] == pytest.approx(0.4)
    fade = np.broadcast_to((10 * np.arange(9, dtype=np.uint8))[:, None, None, None], frames.shape)
    assert measure(fade)["flicker"] == 0
    assert mean("flicker", clips()) < 0.001


@pytest.mark.parametrize("frames", [np.zeros((2, 32, 32, 3), np.uint8), np.zeros((9, 32, 32, 3), np.float32)])
def test_other_input_is_refused(frames):
    with pytest.raises(ValueError, match="at least 3 frames"):
        measure(frames)

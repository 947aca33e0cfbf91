"""Motion, flicker and subject drift from pixels: each moves with what it is named for, and by how much."""

from dataclasses import replace

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


RED, GREEN = (240, 16, 16), (16, 240, 16)  # in bins of their own: nothing in common


def square(colours: list[tuple[int, int, int] | None], step: int = 1) -> np.ndarray:
    """A square of 10 pixels on grey that moves by `step` a frame; None: it is not there."""
    frames = np.full((len(colours), 40, 64, 3), 128, np.uint8)
    for t, colour in enumerate(colours):
        if colour is not None:
            frames[t, 15:25, 5 + step * t : 15 + step * t] = colour
    return frames


def test_drift_of_a_still_and_of_a_subject_that_only_moves_is_none():
    assert measure(square([RED] * 17, step=0))["subject_drift"] == 0
    for step in (1, 3):  # slower than its size, and on
        assert measure(square([RED] * 17, step))["subject_drift"] < 1e-6
    assert mean("subject_drift", clips()) < 0.02


def test_drift_counts_the_frames_in_which_the_subject_has_other_colours_or_is_gone():
    # 17 frames, 16 of them beside the first: other in 8, gone in 4
    assert measure(square([RED] * 9 + [GREEN] * 8))["subject_drift"] == pytest.approx(0.5)
    assert measure(square([RED] * 13 + [None] * 4))["subject_drift"] == pytest.approx(0.25)
    assert measure(square([None] * 4 + [RED] * 13))["subject_drift"] == pytest.approx(0.25)
    half = square([RED] * 17)
    for t in range(9, 17):  # half of the pixels turn: cos((1, 0), (1, 1)) = √½
        half[t, 15:20, 5 + t : 15 + t] = GREEN
    assert measure(half)["subject_drift"] == pytest.approx((1 - 0.5**0.5) / 2, abs=0.002)
    moving = world.draw_scene("red", "square", "left", np.random.default_rng(0))
    recoloured = world.render(moving)
    recoloured[9:] = world.render(replace(moving, colour="green"))[9:]
    assert measure(recoloured)["subject_drift"] == pytest.approx(0.5, abs=0.05)


def test_drift_is_not_moved_by_camera_noise_or_a_moving_camera():
    noise = np.random.default_rng(0).normal(0, 4, (17, 40, 64, 3))
    noisy = np.clip(square([RED] * 17) + noise, 0, 255).astype(np.uint8)
    assert measure(noisy)["subject_drift"] < 0.01
    still = np.clip(square([RED] * 17, step=0) + noise, 0, 255).astype(np.uint8)
    assert measure(still)["subject_drift"] < 0.05
    wide = np.random.default_rng(1).integers(0, 256, (40, 96, 3), dtype=np.uint8)
    pan = np.stack(
        [wide[:, t : t + 64] for t in range(17)]
    )  # the frame is the subject, and keeps its colours
    assert measure(pan)["subject_drift"] < 0.05


@pytest.mark.parametrize("frames", [np.zeros((2, 32, 32, 3), np.uint8), np.zeros((9, 32, 32, 3), np.float32)])
def test_other_input_is_refused(frames):
    with pytest.raises(ValueError, match="at least 3 frames"):
        measure(frames)

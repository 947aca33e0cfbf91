"""Each convention's identities, and RealDPO's x0 error against the plain one."""

import pytest
import torch

from generator.parametrisation import EpsilonPrediction, FlowMatching, VPrediction

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # CogVideoX's
ALPHAS = (1 - BETAS).cumprod(0)
STEPS = torch.tensor([30.0, 612.5])
LEVELS = {"flow": torch.tensor([0.3, 0.9]), "v": STEPS, "epsilon": STEPS}
KINDS = {"flow": FlowMatching(), "v": VPrediction(ALPHAS), "epsilon": EpsilonPrediction(ALPHAS)}


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(), draw(), draw()


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_gives_the_clean_latents_back(kind, latents):
    x, eps, _ = latents
    form, level = KINDS[kind], LEVELS[kind].double()
    noisy = form.noise(x, eps, level)
    torch.testing.assert_close(form.clean(noisy, form.target(x, eps, level), level), x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weighted_error_of_x0_is_the_plain_one_for_velocities(kind, latents):
    """By hand: v: x̂0 − x = −√(1−ᾱ)·(v̂ − v); flow: −σ·(v̂ − v); ε: −√(1−ᾱ)/√ᾱ·(ε̂ − ε)."""
    x, eps, wrong = latents
    form, level = KINDS[kind], LEVELS[kind].double()
    target = form.target(x, eps, level)
    estimate = form.clean(form.noise(x, eps, level), target + wrong, level)
    weighted = (estimate - x).pow(2).mean(dim=(1, 2, 3, 4)) * form.x0_weight(level)
    plain = wrong.pow(2).mean(dim=(1, 2, 3, 4))
    expected = plain / form.alpha_bar(level) if kind == "epsilon" else plain
    torch.testing.assert_close(weighted, expected)


@pytest.mark.parametrize("kind", ["v", "epsilon"])
def test_whole_timesteps_are_those_of_the_schedule_and_fractions_lie_between(kind):
    form = KINDS[kind]
    torch.testing.assert_close(form.alpha_bar(torch.tensor([0.0, 500.0, 999.0])), ALPHAS[[0, 500, 999]])
    between = form.alpha_bar(torch.tensor([10.5]))
    assert ALPHAS[11] < between < ALPHAS[10]
    with pytest.raises(ValueError, match="timesteps must lie in"):
        form.alpha_bar(torch.tensor([1000.0]))


@pytest.mark.parametrize("eta", [0.2, 0.65, 0.8])
def test_a_level_of_eta_has_its_signal_to_noise_ratio(eta):
    assert FlowMatching.level_of(eta) == eta
    form = KINDS["v"]
    alpha = form.alpha_bar(torch.tensor([form.level_of(eta)], dtype=torch.float64)).item()
    assert alpha / (1 - alpha) == pytest.approx(((1 - eta) / eta) ** 2, rel=1e-9)


def test_a_schedule_that_rises_is_refused():
    with pytest.raises(ValueError, match="must fall"):
        VPrediction(torch.tensor([0.5, 0.6]))

"""The preference loss against hand-derived values and the laws that it must obey."""

import math

import pytest
import torch

from generator.losses import PairErrors, frame_errors, kto_loss, preference_loss, preference_statistics
from generator.parametrisation import FlowMatching, shift_sigma, sigma_of


def errors_of(winner_change, loser_change) -> PairErrors:
    """Reference errors 0.5; the policy's differ by the given changes, lists [B][T']."""
    winner, loser = (
        torch.tensor(winner_change, dtype=torch.float64),
        torch.tensor(loser_change, dtype=torch.float64),
    )
    reference = torch.full_like(winner, 0.5)
    return PairErrors(reference + winner, reference + loser, reference, reference)


def loss_of(errors, signs, weights=None, beta=500.0, reduction="clip", half=True) -> float:
    signs = torch.tensor(signs, dtype=torch.float64)
    weights = (
        torch.ones(len(signs), dtype=torch.float64)
        if weights is None
        else torch.tensor(weights, dtype=torch.float64)
    )
    return preference_loss(errors, signs, weights, beta=beta, reduction=reduction, half=half).item()


DENSE = errors_of([[-0.003, 0.001, 0.002, -0.004]], [[0.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("errors", "signs", "reduction", "expected"),
    [
        (errors_of([[-0.002]], [[0.001]]), [[1]], "clip", 0.386871),
        (DENSE, [[1, 0, -1, 1]], "frame", 0.391403),
        (DENSE, [[1, 1, 1, 1]], "clip", 0.575939),
    ],
)
def test_golden_values(errors, signs, reduction, expected):
    assert loss_of(errors, signs, reduction=reduction) == pytest.approx(expected, abs=1e-6)


def test_equation_7_as_printed_and_with_the_half():
    # by hand: Σ l·d = −.009; ln(1 + e^−4.5) and ln(1 + e^−2.25)
    signs = [[1, 0, -1, 1]]
    assert loss_of(DENSE, signs, reduction="frame_sum", half=False) == pytest.approx(0.011048, abs=1e-6)
    assert loss_of(DENSE, signs, reduction="frame_sum") == pytest.approx(0.100207, abs=1e-6)


def kto_of(errors, signs, weights=None) -> float:
    signs = torch.tensor(signs, dtype=torch.float64)
    weights = torch.ones(len(signs), dtype=torch.float64) if weights is None else torch.tensor(weights)
    return kto_loss(errors, signs, weights.double(), beta=500.0).item()


def test_kto_by_hand():
    # r = .5 and −.25, Q = max(0, .125): 1 − σ(.375) for both clips
    assert kto_of(errors_of([[-0.002]], [[0.001]]), [[1]]) == pytest.approx(
        1 / (1 + math.exp(0.375)), abs=1e-9
    )
    # the other way round, by the sign
    assert kto_of(errors_of([[0.001]], [[-0.002]]), [[-1]]) == pytest.approx(
        1 / (1 + math.exp(0.375)), abs=1e-9
    )
    # r = −.5 and −.25: the baseline is no lower than 0
    expected = (1 / (1 + math.exp(-0.5)) + 1 / (1 + math.exp(0.25))) / 2
    assert kto_of(errors_of([[0.002]], [[0.001]]), [[1]]) == pytest.approx(expected, abs=1e-9)
    assert kto_of(errors_of([[0.0]], [[0.0]]), [[1]]) == pytest.approx(0.5, abs=1e-12)


def test_kto_leaves_ties_out_and_counts_weights():
    both = errors_of([[-0.002], [5.0]], [[0.001], [9.0]])
    assert kto_of(both, [[1], [0]]) == pytest.approx(kto_of(errors_of([[-0.002]], [[0.001]]), [[1]]))
    assert kto_of(both, [[1], [1]], [1.0, 0.0]) == pytest.approx(kto_of(both, [[1], [0]]))


@pytest.mark.parametrize("reduction", ["clip", "frame", "frame_sum"])
def test_equal_policy_and_reference_give_ln_2(reduction):
    errors = errors_of([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])
    assert loss_of(errors, [[1, 1], [1, 0]], reduction=reduction) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("reduction", ["clip", "frame", "frame_sum"])
def test_swapping_winner_and_loser_negates_the_margin(reduction):
    forward, backward = errors_of([[-0.01, 0.02]], [[0.03, 0.0]]), errors_of([[0.03, 0.0]], [[-0.01, 0.02]])
    assert torch.allclose(forward.frame_margins(), -backward.frame_margins())
    assert loss_of(forward, [[1, 1]], reduction=reduction) == pytest.approx(
        loss_of(backward, [[-1, -1]], reduction=reduction), abs=1e-12
    )


@pytest.mark.parametrize("reduction", ["clip", "frame", "frame_sum"])
def test_order_of_the_batch_does_not_matter_and_weights_do(reduction):
    change = [[-0.01, 0.0], [0.02, 0.01], [0.0, -0.03]]
    zero = [[0.0, 0.0]] * 3
    signs, weights = [[1, 1], [1, -1], [0, 1]], [1.0, 0.5, 2.0]
    value = loss_of(errors_of(change, zero), signs, weights, reduction=reduction)
    order = [2, 0, 1]
    permuted = loss_of(
        errors_of([change[i] for i in order], zero),
        [signs[i] for i in order],
        [weights[i] for i in order],
        reduction=reduction,
    )
    assert value == pytest.approx(permuted, abs=1e-12)
    assert value != pytest.approx(loss_of(errors_of(change, zero), signs, reduction=reduction), abs=1e-4)


def test_ties_add_nothing():
    errors = errors_of([[-0.01, 5.0]], [[0.01, 0.0]])
    alone = errors_of([[-0.01]], [[0.01]])
    assert loss_of(errors, [[1, 0]], reduction="frame") == pytest.approx(
        loss_of(alone, [[1]], reduction="frame")
    )
    assert loss_of(errors, [[0, 0]], reduction="frame") == 0.0


def test_a_better_winner_lowers_the_loss_and_the_reference_gets_no_gradient():
    winner, loser = torch.tensor([[0.5]], requires_grad=True), torch.tensor([[0.5]], requires_grad=True)
    errors = PairErrors(winner, loser, torch.tensor([[0.5]]), torch.tensor([[0.5]]))
    preference_loss(errors, torch.tensor([[1]]), torch.ones(1), beta=10.0, reduction="clip").backward()
    # descending the loss lowers the winner's error and raises the loser's
    assert winner.grad.item() > 0 > loser.grad.item()
    assert winner.grad.item() == pytest.approx(10 * 0.5 * 0.5)


def test_statistics_follow_the_signs():
    errors = errors_of([[-0.1], [-0.1]], [[0.0], [0.0]])
    stats = preference_statistics(errors, torch.tensor([[1], [-1]]))
    assert stats["implicit_accuracy"] == 0.5 and stats["negative_margins"] == 0.5
    assert stats["winner_error_change"] == pytest.approx(-0.05) and stats[
        "loser_error_change"
    ] == pytest.approx(-0.05)


def test_frame_errors_keep_the_latent_frames():
    prediction = torch.zeros(2, 3, 5, 4, 4)
    target = torch.zeros(2, 3, 5, 4, 4)
    target[1, :, 2] = 2.0
    errors = frame_errors(prediction, target)
    assert errors.shape == (2, 5) and errors[1, 2] == 4.0 and errors.sum() == 4.0
    with pytest.raises(ValueError, match="differ in shape"):
        frame_errors(prediction, target[:, :, :4])


def test_flow_matching_identities():
    x, eps = torch.randn(2, 3, 2, 2, 2), torch.randn(2, 3, 2, 2, 2)
    sigma = torch.tensor([0.3, 0.9])
    noisy = FlowMatching.noise(x, eps, sigma)
    assert torch.allclose(noisy[0], 0.7 * x[0] + 0.3 * eps[0])
    assert torch.allclose(FlowMatching.clean(noisy, FlowMatching.target(x, eps, sigma), sigma), x, atol=1e-5)


def test_noise_levels_are_quantiles_shifted_and_in_range():
    assert shift_sigma(torch.tensor([0.6]), 3.0).item() == pytest.approx(0.8181818)
    quantiles = torch.linspace(0, 1, 1001)[:-1]
    for kind in ("logit_normal", "uniform"):
        sigma = sigma_of(quantiles, kind, 3.0, 0.2, 0.9)
        assert sigma.min() >= 0.2 and sigma.max() <= 0.9
        assert (sigma.diff() > 0).all()
        # the median of both is ½, which a shift of 3 moves to ¾ of the range
        assert sigma[500].item() == pytest.approx(0.2 + 0.7 * 0.75, abs=1e-6)
    # sigmoid(1) is the quantile Φ(1) = .8413447 of the logit-normal
    one = sigma_of(torch.tensor([0.8413447]), "logit_normal", 1.0)
    assert one.item() == pytest.approx(0.7310586, abs=1e-6)
    with pytest.raises(ValueError, match="logit_normal or uniform"):
        sigma_of(quantiles, "cosine", 1.0)

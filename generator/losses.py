"""One preference loss with switches; every paper's objective is a setting of it.

Errors are squared errors of the network's prediction, averaged over channels, height and width:
`err` [B, T'] keeps the latent frames, so that the same numbers serve clip and frame reductions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each latent frame: float32 [B, T'] of two [B, C, T', H', W']."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape; a "
            "family's predict must return latents of the shape that it was given"
        )
    return (prediction.float() - target.float()).pow(2).mean(dim=(1, 3, 4))


@dataclass(frozen=True)
class PairErrors:
    """Errors of policy and reference on winners and losers, float [B, T']; same noise and t within a pair."""

    policy_winner: Tensor
    policy_loser: Tensor
    reference_winner: Tensor
    reference_loser: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> PairErrors:
        return PairErrors(*(function(getattr(self, f)) for f in self.__dataclass_fields__))

    def detach(self) -> PairErrors:
        return self.map(Tensor.detach)

    @staticmethod
    def cat(parts: Sequence[PairErrors]) -> PairErrors:
        """All pairs of `parts`, in order."""
        names = PairErrors.__dataclass_fields__
        return PairErrors(*(torch.cat([getattr(p, f) for p in parts]) for f in names))

    def frame_margins(self) -> Tensor:
        """How much more the policy improved on the winner than on the loser, [B, T']; positive is good."""
        winner = self.policy_winner - self.reference_winner
        loser = self.policy_loser - self.reference_loser
        return loser - winner


def weight_of(signs: Tensor, weights: Tensor, reduction: str) -> Tensor:
    """What every loss term counts: float [B], or [B, T'] for `frame`; ties count nothing.

    Arguments as for `preference_loss`. Its sum over a step's whole batch is what the loss is divided by,
    however the batch is cut into micro-batches and ranks.
    """
    if reduction == "clip":
        return weights * signs.sum(dim=1).sign().abs()
    if reduction == "frame":
        return weights[:, None] * signs.abs()
    if reduction == "frame_sum":
        return weights * signs.abs().amax(dim=1)
    raise ValueError(f"unknown reduction {reduction!r}; use clip, frame or frame_sum")


def preference_loss(
    errors: PairErrors,
    signs: Tensor,
    weights: Tensor,
    *,
    beta: float,
    reduction: str,
    half: bool = True,
    total: Tensor | None = None,
) -> Tensor:
    """−log σ(½·β·margin), the factor ½ as in Diffusion-DPO's appendix and DenseDPO's; `half` False: without.

    `signs` int [B, T'] holds +1 where the first clip of a pair is better in that latent frame, −1 where the
    second is, 0 for a tie; `weights` float [B].
    `clip`: one margin a pair, the mean over latent frames, signed by the majority of `signs`; a weighted
    mean of pairs.
    `frame`: one margin a latent frame; a weighted mean over all non-tie frames of the batch (DenseDPO, Eq. 8
    of the appendix: the count is the batch's, so that long and short ties weigh alike).
    `frame_sum`: one margin a pair, the sum of its signed frames (DenseDPO, Eq. 7; printed without the half).
    `total` is the weight of the whole batch where these pairs are a part of it, so that the parts' losses add
    up to the batch's; by default these pairs are all. Returns a scalar; 0 when everything is tied. Equal
    policy and reference give ln 2.
    """
    margins_BT = errors.frame_margins()
    scale = 0.5 * beta if half else beta
    weight = weight_of(signs, weights, reduction)
    if reduction == "clip":
        loss = -F.logsigmoid(scale * signs.sum(dim=1).sign() * margins_BT.mean(dim=1))
    elif reduction == "frame":
        loss = -F.logsigmoid(scale * signs * margins_BT)
    else:
        loss = -F.logsigmoid(scale * (signs * margins_BT).sum(dim=1))
    return (loss * weight).sum() / _positive(weight.sum() if total is None else total)


def _positive(total: Tensor) -> Tensor:
    return total.clamp_min(torch.finfo(total.dtype).tiny)


def kto_loss(
    errors: PairErrors,
    signs: Tensor,
    weights: Tensor,
    *,
    beta: float,
    half: bool = True,
    total: Tensor | None = None,
    baseline: Tensor | None = None,
) -> Tensor:
    """Diffusion-KTO (arXiv 2404.04465): each clip of a pair is desirable or not, whatever it was paired with.

    With r = −½·β·(err_policy − err_reference), means over latent frames, and Q = max(0, mean r) of the batch,
    detached: the mean of 1 − σ(r − Q) over winners and 1 − σ(Q − r) over losers. An untrained policy gives ½.
    Arguments as for `preference_loss`; a pair's majority sign says which clip is which, ties are left out.
    `baseline` is the Q of the whole batch, where these pairs are a part of it (`kto_baseline`).
    """
    first, second, sign_B, weight = _kto_rewards(errors, signs, weights, beta, half)
    if baseline is None:
        baseline = kto_baseline(errors, signs, weights, beta=beta, half=half)
    # σ(−u) = 1 − σ(u); where the second clip won the roles are swapped
    lost = torch.sigmoid(-sign_B * (first - baseline)) + torch.sigmoid(sign_B * (second - baseline))
    return (lost / 2 * weight).sum() / _positive(weight.sum() if total is None else total)


@torch.no_grad()
def kto_baseline(
    errors: PairErrors, signs: Tensor, weights: Tensor, *, beta: float, half: bool = True
) -> Tensor:
    """Q of Diffusion-KTO: the mean reward of all clips of a batch, at least 0; a scalar."""
    first, second, _, weight = _kto_rewards(errors, signs, weights, beta, half)
    return ((first + second) / 2 * weight).sum().div(_positive(weight.sum())).clamp_min(0)


def _kto_rewards(
    errors: PairErrors, signs: Tensor, weights: Tensor, beta: float, half: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """r of each pair's first and second clip, its majority sign and its weight, 0 for a tie; [B] each."""
    scale = 0.5 * beta if half else beta
    sign_B = signs.sum(dim=1).sign()
    first = scale * (errors.reference_winner - errors.policy_winner).mean(dim=1)
    second = scale * (errors.reference_loser - errors.policy_loser).mean(dim=1)
    return first, second, sign_B, weights * sign_B.abs()


@torch.no_grad()
def preference_statistics(errors: PairErrors, signs: Tensor) -> dict[str, float]:
    """What the literature says to watch: implicit accuracy, margin, each side's error against the reference.

    A rising winner error is likelihood displacement (the policy gets worse on what it should prefer).
    """
    sign = signs.sum(dim=1).sign()
    margin = sign * errors.frame_margins().mean(dim=1)
    first = (errors.policy_winner - errors.reference_winner).mean(dim=1)
    second = (errors.policy_loser - errors.reference_loser).mean(dim=1)
    winner, loser = torch.where(sign >= 0, first, second), torch.where(sign >= 0, second, first)
    return {
        "implicit_accuracy": (margin > 0).float().mean().item(),
        "margin": margin.mean().item(),
        "negative_margins": (margin < 0).float().mean().item(),
        "winner_error_change": winner.mean().item(),
        "loser_error_change": loser.mean().item(),
    }

"""One preference loss with switches; every paper's objective is a setting of it.

Errors are squared errors of the network's prediction, averaged over channels, height and width:
`err` [B, T'] keeps the latent frames, so that the same numbers serve clip and frame reductions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each latent frame: float32 [B, T'] of two [B, C, T', H', W']."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape"
        )
    return (prediction.float() - target.float()).pow(2).mean(dim=(1, 3, 4))


@dataclass(frozen=True)
class PairErrors:
    """Errors of policy and reference on winners and losers, float [B, T']; same noise and t within a pair."""

    policy_winner: Tensor
    policy_loser: Tensor
    reference_winner: Tensor
    reference_loser: Tensor

    def frame_margins(self) -> Tensor:
        """How much more the policy improved on the winner than on the loser, [B, T']; positive is good."""
        winner = self.policy_winner - self.reference_winner
        loser = self.policy_loser - self.reference_loser
        return loser - winner


def preference_loss(
    errors: PairErrors, signs: Tensor, weights: Tensor, *, beta: float, reduction: str, half: bool = True
) -> Tensor:
    """−log σ(½·β·margin), the factor ½ as in Diffusion-DPO's appendix and DenseDPO's; `half` False: without.

    `signs` int [B, T'] holds +1 where the first clip of a pair is better in that latent frame, −1 where the
    second is, 0 for a tie; `weights` float [B].
    `clip`: one margin a pair, the mean over latent frames, signed by the majority of `signs`; a weighted
    mean of pairs.
    `frame`: one margin a latent frame; a weighted mean over all non-tie frames of the batch (DenseDPO, Eq. 8
    of the appendix: the count is the batch's, so that long and short ties weigh alike).
    `frame_sum`: one margin a pair, the sum of its signed frames (DenseDPO, Eq. 7; printed without the half).
    Returns a scalar; 0 when everything is tied. Equal policy and reference give ln 2.
    """
    margins_BT = errors.frame_margins()
    scale = 0.5 * beta if half else beta
    if reduction == "clip":
        sign_B = signs.sum(dim=1).sign()
        loss = -F.logsigmoid(scale * sign_B * margins_BT.mean(dim=1))
        weight = weights * sign_B.abs()
    elif reduction == "frame":
        loss = -F.logsigmoid(scale * signs * margins_BT)
        weight = weights[:, None] * signs.abs()
    elif reduction == "frame_sum":
        loss = -F.logsigmoid(scale * (signs * margins_BT).sum(dim=1))
        weight = weights * signs.abs().amax(dim=1)
    else:
        raise ValueError(f"unknown reduction {reduction!r}; use clip, frame or frame_sum")
    total = weight.sum()
    return (loss * weight).sum() / total.clamp_min(torch.finfo(loss.dtype).tiny)


def kto_loss(errors: PairErrors, signs: Tensor, weights: Tensor, *, beta: float, half: bool = True) -> Tensor:
    """Diffusion-KTO (arXiv 2404.04465): each clip of a pair is desirable or not, whatever it was paired with.

    With r = −½·β·(err_policy − err_reference), means over latent frames, and Q = max(0, mean r) of the batch,
    detached: the mean of 1 − σ(r − Q) over winners and 1 − σ(Q − r) over losers. An untrained policy gives ½.
    Arguments as for `preference_loss`; a pair's majority sign says which clip is which, ties are left out.
    """
    scale = 0.5 * beta if half else beta
    sign_B = signs.sum(dim=1).sign()
    first = scale * (errors.reference_winner - errors.policy_winner).mean(dim=1)
    second = scale * (errors.reference_loser - errors.policy_loser).mean(dim=1)
    weight = weights * sign_B.abs()
    total = weight.sum().clamp_min(torch.finfo(first.dtype).tiny)
    baseline = ((first + second) / 2 * weight).sum().div(total).detach().clamp_min(0)
    # σ(−u) = 1 − σ(u); where the second clip won the roles are swapped
    lost = torch.sigmoid(-sign_B * (first - baseline)) + torch.sigmoid(sign_B * (second - baseline))
    return (lost / 2 * weight).sum() / total


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

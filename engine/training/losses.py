"""What a step minimises: the last layer's loss on the text, and its exits'."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.training.modules import TrainableDecoder
from engine.training.recipe import TrainingConfig


class StepLosses(NamedTuple):
    """Losses in nats per token, each a scalar."""

    full: Tensor
    by_exit: dict[int, Tensor]
    early: Tensor
    """The exits' weighted sum."""
    total: Tensor


HeadLoss = Callable[
    [TrainableDecoder, Tensor, Tensor, Tensor | None, bool, float, float], tuple[Tensor, Tensor]
]


def head_loss(
    model: TrainableDecoder,
    hidden_ND: Tensor,
    targets_N: Tensor,
    final_NV: Tensor | None,
    normed: bool,
    distill_weight: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """(loss in nats per token, logits) of a residual stream.

    With `distill_weight`, that share of the loss compares with the last layer's logits
    `final_NV` instead of the text.
    """
    logits_NV = model.head(hidden_ND, normed)
    loss = torch.zeros(())
    if distill_weight < 1:
        loss = (1 - distill_weight) * F.cross_entropy(logits_NV.float(), targets_N)
    if final_NV is not None and distill_weight > 0:
        distilled = distillation_loss(logits_NV.float(), final_NV.float(), temperature)
        loss = loss + distill_weight * distilled
    return loss, logits_NV


def step_losses(
    model: TrainableDecoder,
    config: TrainingConfig,
    outputs: dict[int, Tensor],
    targets_N: Tensor,
    weights: dict[int, float],
    head: HeadLoss = head_loss,
) -> StepLosses:
    """Losses of a step whose residuals after the last layer and after the exits are `outputs`.

    `weights` has the exits' weights in the early-exit loss; `head` is `head_loss`, or that
    compiled.
    """
    depth, exit_norm = config.model.num_layers, config.model.exit_norm
    full, final_NV = head(model, outputs[depth], targets_N, None, True, 0.0, 1.0)
    final_NV = final_NV.detach()
    by_exit: dict[int, Tensor] = {}
    for exit_layer in weights:
        by_exit[exit_layer], _ = head(
            model,
            outputs[exit_layer],
            targets_N,
            final_NV,
            exit_norm or exit_layer == depth,
            config.distill_weight,
            config.distill_temperature,
        )
    terms = [weights[exit_layer] * by_exit[exit_layer] for exit_layer in weights]
    early = torch.stack(terms).sum() if terms else torch.zeros(())
    return StepLosses(full, by_exit, early, full + config.exit_loss_weight * early)


def distillation_loss(logits_NV: Tensor, final_NV: Tensor, temperature: float) -> Tensor:
    """Mean KL divergence of an exit from the last layer, τ² times; the last layer is a constant.

    The factor keeps gradients of a size at every temperature (Hinton et al. 2015,
    arXiv 1503.02531).
    """
    divergence = F.kl_div(
        (logits_NV / temperature).log_softmax(dim=-1),
        (final_NV.detach() / temperature).log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence

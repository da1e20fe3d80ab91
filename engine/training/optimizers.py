"""AdamW for everything, or Muon for the layers' matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from engine.checkpoint.names import is_linear
from engine.training.recipe import TrainingConfig

_BETAS = (0.9, 0.95)


class Optimizers:
    """The optimisers of a run behind one step and one state."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        matrices = {n: p for n, p in model.named_parameters() if p.dim() > 1}
        vectors = [p for p in model.parameters() if p.dim() <= 1]
        self._optimizers: list[Optimizer] = []
        if config.optimizer == "muon":
            inner = [matrices.pop(name) for name in list(matrices) if is_linear(name)]
            # The adjustment lets AdamW's learning rate serve for both (arXiv 2502.16982).
            self._optimizers.append(
                torch.optim.Muon(
                    inner, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )
        groups = [
            {"params": list(matrices.values()), "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._optimizers.append(torch.optim.AdamW(groups, betas=_BETAS, fused=True))

    def groups(self) -> Iterator[dict[str, Any]]:
        """Every optimiser's parameter groups."""
        for optimizer in self._optimizers:
            yield from optimizer.param_groups

    def step(self, rate: float) -> None:
        """Update all parameters with this learning rate, and drop their gradients."""
        for group in self.groups():
            group["lr"] = rate
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """What `load_state_dict` needs to go on."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from the state of optimisers of the same recipe."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)

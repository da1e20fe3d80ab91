"""A run's first weights: random, or those of a checkpoint that training goes on from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.names import LINEARS, expected_shapes, is_linear, linear_name
from engine.config import ModelConfig
from engine.training.modules import TrainableDecoder
from engine.training.recipe import TrainingConfig


def initial_model(config: TrainingConfig, start: Checkpoint | None) -> TrainableDecoder:
    """A model to be trained, on `start`'s weights if there is one (its shape must be the same).

    What is random follows from the seed; the caller's generator is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = TrainableDecoder(config.model, getattr(torch, config.precision))
        if start is not None:
            model.load_state_dict(_read_weights(start, config.model))
    return model


def _read_weights(start: Checkpoint, config: ModelConfig) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name in expected_shapes(config):
        if not is_linear(name) or config.is_dense:
            weights[name] = _floats(start, name)
    if not config.is_dense:
        for layer in range(config.num_layers):
            for linear in LINEARS:
                weights[linear_name(layer, linear)] = _latent(start, layer, linear)
    return weights


def _floats(start: Checkpoint, name: str) -> Tensor:
    return torch.from_numpy(np.array(start.tensor(name), dtype=np.float32))


def _latent(start: Checkpoint, layer: int, linear: str) -> Tensor:
    ternary = start.linear(layer, linear)
    trits = torch.from_numpy(ternary.trits)
    if not start.is_packed:
        weight = _floats(start, linear_name(layer, linear))
        if not torch.equal(weight, trits * float(ternary.scale)):
            return weight
    return latent_of(trits, float(ternary.scale))


def latent_of(trits: Tensor, scale: float) -> Tensor:
    """Random latent weights that ternarise to `trits` with mean magnitude `scale`.

    Zeros lie evenly between the thresholds of ±scale/2; the others lie beyond theirs by
    half-normal distances, of the size that makes the mean right. So some are near a threshold and
    some far, as training leaves them, where 0 and ±scale would all be equally hard to turn.
    """
    half = 0.5 * scale
    # A margin, so that rounding of the mean moves no weight over its threshold.
    inner = half * 0.998 * torch.rand(trits.shape, dtype=torch.float64)
    outer = torch.randn(trits.shape, dtype=torch.float64).abs() + 0.005
    signs = torch.randint(0, 2, trits.shape) * 2 - 1
    is_zero = trits == 0
    missing = scale * trits.numel() - inner[is_zero].sum() - half * (~is_zero).sum()
    stretch = missing / outer[~is_zero].sum()
    return torch.where(is_zero, inner * signs, (half + stretch * outer) * trits).float()

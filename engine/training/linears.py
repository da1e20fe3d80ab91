"""Trainable linears: ternary with straight-through quantisers, Hadamard forms, and dense.

Shape legend: N rows, K inputs, M outputs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checkpoint.ternary import SCALE_FLOOR
from engine.config import ModelConfig
from engine.model.linears import butterflies, hadamard, quantise


def ternarise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """({−1, 0, +1}, s) with s = mean|W| and strict thresholds at ±s/2, in the weight's dtype.

    The mean is accumulated in float64 and rounded once, as the loader does it, so that a weight
    at the threshold falls on the same side in training and in serving. The loader's own function
    reads s as a number, which would break a compiled graph, and keeps the s of a tensor that is
    ternary already, which a tensor in training is not.
    """
    scale = weight.abs().mean(dtype=torch.float64).to(weight.dtype).clamp_min(SCALE_FLOOR)
    half = 0.5 * scale
    return (weight > half).to(weight.dtype) - (weight < -half).to(weight.dtype), scale


class _TernaryMatmul(torch.autograd.Function):
    """y = quantise(x) · ternarise(W)ᵀ for several W at once, both quantisers straight-through.

    Integers are multiplied, and scaled afterwards, as in serving; bfloat16 holds them exactly.
    With `transform`, the quantised rows are Hadamard-transformed first: those sums are exact in
    float32, and rounded where `dtype` is less.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NK: Tensor,
        levels: int,
        transform: bool,
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> Tensor:
        codes_NK, peak_N1 = quantise(x_NK, levels)
        step_N1 = peak_N1 / levels
        pairs = [ternarise(weight) for weight in weights]
        trits_MK = torch.cat([trits for trits, _ in pairs]).to(dtype)
        scale_M = torch.cat([s.expand(trits.shape[0]) for trits, s in pairs])
        if transform:
            codes_NK = butterflies(codes_NK)
            step_N1 = step_N1 * (1.0 / math.sqrt(x_NK.shape[-1]))
        codes_NK = codes_NK.to(dtype)
        ctx.save_for_backward(codes_NK, step_N1, trits_MK, scale_M)
        ctx.transform = transform
        ctx.sizes = [weight.shape[0] for weight in weights]
        return (codes_NK @ trits_MK.T).float() * (step_N1 * scale_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NM,) = grads
        codes_NK, step_N1, trits_MK, scale_M = ctx.saved_tensors
        dtype = codes_NK.dtype
        grad_x = ((grad_NM * scale_M).to(dtype) @ trits_MK).float()
        if ctx.transform:
            grad_x = hadamard(grad_x)
        grad_weight = ((grad_NM * step_N1).to(dtype).T @ codes_NK).float()
        return (grad_x, None, None, None, *grad_weight.split(ctx.sizes))


class Linear(nn.Module):
    """A bias-free linear with a float weight; what is computed with it is `project`'s affair."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.normal_(self.weight, std=1.0 / math.sqrt(inputs))


def project(
    config: ModelConfig, dtype: torch.dtype, x_NK: Tensor, *linears: Linear
) -> list[Tensor]:
    """Outputs (float32) of linears that share an input, as the configuration's numerics ask.

    They are one product, taken in `dtype`.
    """
    weights: list[Tensor] = [linear.weight for linear in linears]
    if config.is_dense:
        y_NM = F.linear(x_NK.to(dtype), torch.cat(weights).to(dtype)).float()
    else:
        if config.hadamard == "before":
            x_NK = hadamard(x_NK)
        transform = config.hadamard == "after"
        y_NM: Tensor = _TernaryMatmul.apply(  # pyright: ignore[reportAssignmentType]
            x_NK, config.activation_max, transform, dtype, *weights
        )
    outputs = y_NM.split([weight.shape[0] for weight in weights], dim=-1)
    if config.hadamard == "none":
        return list(outputs)
    return [hadamard(output) for output in outputs]

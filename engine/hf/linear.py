"""The quantised linear of every ternary variant, trainable through straight-through estimators.

Forward, it is MODEL.md's arithmetic to the bit, as the reference backend computes it. Backward,
both roundings, of activations to integers and of weights to −1, 0 and +1, count as the identity.

Shape legend: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checkpoint.ternary import SCALE_FLOOR, FloatDtype, round_to
from engine.config import Hadamard, ModelConfig
from engine.model.linears import butterflies, hadamard, quantise

_DTYPES: dict[torch.dtype, FloatDtype] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
_SAMPLE = 4096
"""Elements that tell most latent tensors from ternary ones without a look at the rest."""
_BLOCK = 1 << 18
"""Trits that are widened at once: they stay in the processor's cache."""


def is_ternary(weight: Tensor) -> bool:
    """Whether a tensor holds only −s, 0 and +s for one s; a tensor of zeros does."""
    magnitude = weight.detach().abs()
    return _holds_only(magnitude, magnitude.amax())


def ternarise(weight: Tensor) -> tuple[Tensor, float]:
    """({−1, 0, +1} as int8, s) of a latent or ternary tensor, as the checkpoint's loader has them.

    `engine.checkpoint.ternary.measure_scale` tells the rules; all comparisons and roundings are
    those of the tensor's own dtype. They stand here again because numpy has no bfloat16 and no
    other device than the CPU.
    """
    dtype = _DTYPES[weight.dtype]
    weight = weight.detach()
    magnitude = weight.abs()
    largest = magnitude.amax()
    if largest == 0:
        scale = float(round_to(SCALE_FLOOR, dtype))
    elif _holds_only(magnitude, largest):
        scale = largest.item()
    else:
        mean = magnitude.mean(dtype=torch.float64).item()
        scale = float(max(round_to(mean, dtype), round_to(SCALE_FLOOR, dtype)))
    half = float(round_to(0.5 * scale, dtype))
    return (weight > half).to(torch.int8) - (weight < -half).to(torch.int8), scale


class TernaryLinear(nn.Linear):
    """A bias-free linear that multiplies quantised inputs by its ternarised weight.

    `weight` is the latent tensor (or a ternary one), of any float dtype; inputs and outputs may
    have another. The weight is ternarised at every use, except while it is held.
    """

    def __init__(self, inputs: int, outputs: int, config: ModelConfig) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.activation_max = config.activation_max
        self.hadamard: Hadamard = config.hadamard
        self.is_holding = False
        self._held: tuple[Tensor, float] | None = None

    def hold(self, holding: bool) -> None:
        """Ternarise once, at the next use, until this is called with False."""
        self.is_holding = holding
        self._held = None

    def forward(self, input: Tensor) -> Tensor:
        """(…, I) → (…, O), computed in float32 and given back in the input's dtype."""
        x_NI = input.reshape(-1, self.in_features).float()
        # Autocast would take the integers' products in half precision, and round their sums.
        with torch.autocast(input.device.type, enabled=False):
            y_NO = self._product(x_NI)
        return y_NO.to(input.dtype).reshape(*input.shape[:-1], self.out_features)

    def _product(self, x_NI: Tensor) -> Tensor:
        if self.hadamard == "before":
            x_NI = hadamard(x_NI)
        trits_OI, scale = self._ternary()
        y_NO: Tensor = _QuantisedProduct.apply(  # pyright: ignore[reportAssignmentType]
            x_NI, self.weight, trits_OI, scale, self.activation_max, self.hadamard == "after"
        )
        return y_NO if self.hadamard == "none" else hadamard(y_NO)

    def _ternary(self) -> tuple[Tensor, float]:
        if self._held is not None:
            return self._held
        ternary = ternarise(self.weight)
        if self.is_holding:
            self._held = ternary
        return ternary


class _QuantisedProduct(torch.autograd.Function):
    """y = float32(Σ q·t) · ((a / largest) · s); with `transformed`, Hq takes q's place.

    H is the Walsh–Hadamard transform over the inputs, un-normalised on the integers, its 1/√I
    part of the scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        trits_OI: Tensor,
        scale: float,
        largest: int,
        transformed: bool,
    ) -> Tensor:
        q_NI, peak_N1 = quantise(x_NI, largest)
        # A tensor, since some devices multiply by a number's reciprocal instead of dividing.
        step_N1 = peak_N1 / torch.full_like(peak_N1[:1], largest)
        scale_N1, dtype = step_N1 * scale, torch.float32
        if transformed:
            root = float(np.float32(1.0 / math.sqrt(x_NI.shape[1])))
            q_NI, step_N1, scale_N1 = butterflies(q_NI), step_N1 * root, scale_N1 * root
            # Sums of transformed integers can pass 2²⁴, to which float32 counts exactly.
            dtype = torch.float64
        parts = trits_OI.split(max(1, _BLOCK // trits_OI.shape[1]))
        acc_NO = torch.cat([F.linear(q_NI.to(dtype), part.to(dtype)) for part in parts], dim=1)
        ctx.save_for_backward(q_NI, step_N1, trits_OI)
        ctx.scale, ctx.transformed, ctx.dtype = scale, transformed, weight_OI.dtype
        # The order of a sum may decide the sign of a zero, and nothing else: + 0 makes it +0.
        return acc_NO.float() * scale_N1 + 0.0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NO,) = grads
        q_NI, step_N1, trits_OI = ctx.saved_tensors
        grad_x_NI = grad_weight_OI = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = (grad_NO * ctx.scale) @ trits_OI.to(grad_NO.dtype)
            if ctx.transformed:
                grad_x_NI = hadamard(grad_x_NI)
        if ctx.needs_input_grad[1]:
            grad_weight_OI = (grad_NO.T @ (q_NI * step_N1)).to(ctx.dtype)
        return grad_x_NI, grad_weight_OI, None, None, None, None


def _holds_only(magnitude: Tensor, value: Tensor) -> bool:
    def holds_only(part: Tensor) -> bool:
        return bool(((part == value) | (part == 0)).all())

    return holds_only(magnitude.reshape(-1)[:_SAMPLE]) and holds_only(magnitude)

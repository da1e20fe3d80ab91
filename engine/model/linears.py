"""The decoder's linears: ternary, with or without Hadamard transforms, and dense.

All keep the rule of `engine.model.ops`: a row's floats depend on that row alone.

Shape legend: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engine.config import Hadamard
from engine.model.ops import rowwise

Linear = Callable[[Tensor], Tensor]
"""N × I inputs → N × O outputs."""

_MIN_PEAK = 1e-6
_EXACT_BITS = 24
"""Integers up to 2²⁴ are float32 values, and so are all partial sums that stay below."""


def quantise(x_NI: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Activations of each row as integers: (integer-valued q, the row's peak a as N × 1).

    a = max|x|, at least 1e-6; q = round-half-even((x · largest) / a), clamped to ±largest, each
    step rounded in float32 (MODEL.md, Quantisation).
    """
    peak_N1 = torch.linalg.vector_norm(x_NI, math.inf, dim=-1, keepdim=True).clamp_min_(_MIN_PEAK)
    q_NI = (x_NI * largest).div_(peak_N1).round_().clamp_(-largest, largest)
    return q_NI, peak_N1


def butterflies(x_NI: Tensor) -> Tensor:
    """The un-normalised Walsh–Hadamard transform of each row; I is a power of two.

    (u, v) → (u + v, u − v) over pairs that lie 1, 2, 4 … I / 2 apart, each step rounded in
    float32. Integers that stay below 2²⁴ stay exact.
    """
    count, size = x_NI.shape
    stride = 1
    while stride < size:
        low, high = x_NI.reshape(count, size // (2 * stride), 2, stride).unbind(2)
        x_NI = torch.stack((low + high, low - high), dim=2).view(count, size)
        stride *= 2
    return x_NI


def hadamard(x_NI: Tensor) -> Tensor:
    """The orthonormal Walsh–Hadamard transform of each row, which is its own inverse."""
    return butterflies(x_NI).mul_(_inverse_root(x_NI.shape[1]))


@dataclass(frozen=True, slots=True)
class TernaryMatrix:
    """One or several ternary linears that share an input, their outputs concatenated."""

    trits_OI: Tensor
    """−1, 0 and +1, stored as float32."""
    scale: Tensor
    """s of each output, or one for all; float32."""
    output_sizes: tuple[int, ...]
    """Of each linear."""
    activation_max: int
    hadamard: Hadamard
    levels: Tensor
    """`activation_max`, on the device."""
    zero: Tensor

    @classmethod
    def fuse(
        cls,
        trits: Sequence[NDArray[np.int8]],
        scales: Sequence[np.float32],
        device: torch.device,
        *,
        activation_max: int = 127,
        hadamard: Hadamard = "none",
    ) -> TernaryMatrix:
        """Stack linears along their outputs; exact, since each output keeps its own scale."""
        counts = tuple(len(matrix) for matrix in trits)
        scale = np.repeat(np.asarray(scales, dtype=np.float32), counts)
        return cls(
            trits_OI=torch.from_numpy(np.concatenate(trits).astype(np.float32)).to(device),
            scale=torch.from_numpy(scale[:1] if len(trits) == 1 else scale).to(device),
            output_sizes=counts,
            activation_max=activation_max,
            hadamard=hadamard,
            levels=torch.tensor([float(activation_max)], device=device),
            zero=torch.zeros(1, device=device),
        )

    def __call__(self, x_NI: Tensor) -> Tensor:
        """y = float32(Σ q·t) · c with c = (a / largest) · s (MODEL.md, Quantisation).

        With Hadamard transforms, q is of the transformed row, or is transformed itself, and y
        is transformed back, linear by linear.
        """
        if self.hadamard == "before":
            x_NI = hadamard(x_NI)
        q_NI, peak_N1 = quantise(x_NI, self.activation_max)
        scale_NO = (peak_N1 / self.levels).mul(self.scale)
        if self.hadamard == "after":
            acc_NO = _transformed_product(q_NI, self.trits_OI)
            scale_NO = scale_NO.mul_(_inverse_root(q_NI.shape[1]))
        else:
            # |Σ q·t| ≤ 127·I < 2²⁴: exact in any order.
            acc_NO = F.linear(q_NI, self.trits_OI)
        # The order of a sum may decide the sign of a zero, and nothing else: 0 + makes it +0.
        y_NO = torch.addcmul(self.zero, acc_NO, scale_NO)
        if self.hadamard == "none":
            return y_NO
        return torch.cat([hadamard(part) for part in y_NO.split(self.output_sizes, dim=1)], dim=1)


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """One or several float linears that share an input, their outputs concatenated."""

    weight_OI: Tensor

    @classmethod
    def fuse(cls, weights: Sequence[NDArray[np.floating]], device: torch.device) -> DenseMatrix:
        """Stack linears along their outputs, as float32."""
        stacked = np.concatenate([weight.astype(np.float32, copy=False) for weight in weights])
        return cls(torch.from_numpy(stacked).to(device))

    def __call__(self, x_NI: Tensor) -> Tensor:
        """y = W·x in float32, one row at a time."""
        return rowwise(self.weight_OI.mv, x_NI)


def _inverse_root(size: int) -> float:
    """1/√size, rounded to float32."""
    return float(np.float32(1.0 / math.sqrt(size)))


def _transformed_product(q_NI: Tensor, trits_OI: Tensor) -> Tensor:
    """float32(Σ (Hq)·t), rounded once.

    Hq and its products with trits are integers, too large for sums in float32. So each element
    of Hq is cut into two digits, high · base + low, whose products are exact: with base = 2²⁵/I
    every |low| ≤ 2²⁴/I, and as Σ|Hq| ≤ 127·I·√I, Σ|high| ≤ 127·I²·√I / 2²⁵ + I/2, which is
    under 2²⁴ up to I = 65,536. The last sum is the only one that rounds.
    """
    size = q_NI.shape[1]
    base = 2.0 ** (_EXACT_BITS + 1) / size
    sums_NI = butterflies(q_NI)
    high_NI = (sums_NI / base).round_()
    low_NI = sums_NI.sub_(high_NI * base)
    return F.linear(high_NI, trits_OI).mul_(base).add_(F.linear(low_NI, trits_OI))

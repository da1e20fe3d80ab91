"""The decoder's arithmetic, built so that a row's floats depend on that row alone.

Library reductions and transcendental functions may change their order or approximation with
the number of rows, the threads, or an operand's place in memory. So each operation here is

- an exact integer product, right in any order (`TernaryMatrix`: |Σ q·t| ≤ 127·K < 2²⁴),
- an elementwise IEEE operation (+, −, ×, ÷, √, rounding) or a maximum, which batching cannot
  change, or
- one row's own computation on a fresh copy of that row, on one thread (`rowwise`).

Divisors are tensors on purpose: on some devices torch turns division by a Python number into
multiplication by its reciprocal.

Shape legend: N rows, I inputs, O outputs, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

QUANTISED_MAX = 127
"""Largest magnitude of an 8-bit activation."""
_MIN_PEAK = 1e-6


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep torch from splitting an operation: a split inside a sum would change its rounding."""
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def rowwise(function: Callable[[Tensor], Tensor], x_N: Tensor) -> Tensor:
    """Apply `function` to one row at a time; the results are stacked.

    Each row is copied first: a view's alignment would vary with the row's index.
    """
    with single_threaded():
        if x_N.shape[0] == 1:
            return function(x_N[0].clone()).unsqueeze(0)
        return torch.stack([function(row.clone()) for row in x_N.unbind()])


def quantise(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit activations of each row: (integer-valued q, the row's peak a as N × 1).

    a = max|x|, at least 1e-6; q = round-half-even((x · 127) / a), clamped to ±127, each step
    rounded in float32 (MODEL.md, Quantisation).
    """
    peak_N1 = torch.linalg.vector_norm(x_NI, math.inf, dim=-1, keepdim=True).clamp_min_(_MIN_PEAK)
    q_NI = (x_NI * QUANTISED_MAX).div_(peak_N1).round_().clamp_(-QUANTISED_MAX, QUANTISED_MAX)
    return q_NI, peak_N1


@dataclass(frozen=True, slots=True)
class TernaryMatrix:
    """One or several ternary linears that share an input, their outputs concatenated."""

    trits_OI: Tensor
    """−1, 0 and +1, stored as float32."""
    scale: Tensor
    """s of each output, or one for all; float32."""
    levels: Tensor
    """127, on the device."""
    zero: Tensor

    @classmethod
    def fuse(
        cls,
        trits: Sequence[NDArray[np.int8]],
        scales: Sequence[np.float32],
        device: torch.device,
    ) -> TernaryMatrix:
        """Stack linears along their outputs; exact, since each output keeps its own scale."""
        counts = [len(matrix) for matrix in trits]
        scale = np.repeat(np.asarray(scales, dtype=np.float32), counts)
        return cls(
            torch.from_numpy(np.concatenate(trits).astype(np.float32)).to(device),
            torch.from_numpy(scale[:1] if len(trits) == 1 else scale).to(device),
            torch.tensor([float(QUANTISED_MAX)], device=device),
            torch.zeros(1, device=device),
        )

    def __call__(self, x_NI: Tensor) -> Tensor:
        """y = float32(Σ q·t) · c with c = (a / 127) · s (MODEL.md, Quantisation)."""
        q_NI, peak_N1 = quantise(x_NI)
        acc_NO = F.linear(q_NI, self.trits_OI)
        scale_NO = (peak_N1 / self.levels).mul(self.scale)
        # The order of a sum may decide the sign of a zero, and nothing else: 0 + makes it +0.
        return torch.addcmul(self.zero, acc_NO, scale_NO)


class RMSNorm:
    """x / √(mean(x²) + eps) · gain."""

    def __init__(self, gain_D: Tensor, eps: float) -> None:
        self._gain_D = gain_D
        self._eps = eps
        self._size = torch.tensor([float(len(gain_D))], device=gain_D.device)
        self._one = torch.ones(1, device=gain_D.device)

    def __call__(self, x_ND: Tensor) -> Tensor:
        squares_N = rowwise(lambda x_D: x_D.dot(x_D), x_ND)
        root_N = squares_N.div_(self._size).add_(self._eps).sqrt_()
        return (x_ND * (self._one / root_N).unsqueeze(1)).mul_(self._gain_D)


def silu(x_NF: Tensor) -> Tensor:
    """x / (1 + e^−x)."""
    return rowwise(F.silu, x_NF)


def head_logits(weight_VD: Tensor, x_ND: Tensor) -> Tensor:
    """N × V float32 logits."""
    return rowwise(weight_VD.mv, x_ND)


def rotary_tables(angles: NDArray[np.float64], device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin) of every position, each positions × head_dim, float32; `rotary_angles` given.

    The first half of sin is negated, so that rotate-half is `x·cos + swapped(x)·sin`.
    """
    cos, sin = np.cos(angles), np.sin(angles)
    cos = np.concatenate((cos, cos), axis=1).astype(np.float32)
    sin = np.concatenate((-sin, sin), axis=1).astype(np.float32)
    return torch.from_numpy(cos).to(device), torch.from_numpy(sin).to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotate-half rotary positions to the last axis; tables from `rotary_tables`."""
    low, high = x.chunk(2, dim=-1)
    return (x * cos).add_(torch.cat((high, low), dim=-1).mul_(sin))

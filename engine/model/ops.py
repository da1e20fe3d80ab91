"""The decoder's arithmetic, built so that a row's floats depend on that row alone.

Library reductions and transcendental functions may change their order or approximation with
the number of rows, the threads, or an operand's place in memory. So each operation here is

- an exact integer product, right in any order (`engine.model.linears`),
- an elementwise IEEE operation (+, −, ×, ÷, √, rounding) or a maximum, which batching cannot
  change, or
- one row's own computation on a fresh copy of that row, on one thread (`rowwise`).

Divisors are tensors on purpose: on some devices torch turns division by a Python number into
multiplication by its reciprocal.

Shape legend: N rows, D hidden, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


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

"""Exact 64-bit hashing on numpy arrays: arithmetic whose every error shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""Unsigned 64-bit integers; their sums and products wrap, so no order can change them."""


def _constant(value: int) -> Words:
    """Arrays of no dimensions: numpy takes them twice as fast as its scalars."""
    return np.asarray(value, dtype=np.uint64)


_LANES = _constant(0x0000FFFF0000FFFF)
_LOW = _constant(0xFFFFFFFF)
_SIXTEEN, _SHIFT, _HALF = _constant(16), _constant(29), _constant(32)
_MULTIPLIER_A = _constant(0xBF58476D1CE4E5B9)
_MULTIPLIER_B = _constant(0x94D049BB133111EB)

_LANE_MEAN = 2 * 65535.0
_LANE_STD = (4 * (65536.0**2 - 1) / 12) ** 0.5


def mix(words: Words) -> Words:
    """A bijection in which every input bit moves about half of the output bits.

    Two rounds of multiply and xor-shift, the shape of the SplitMix64 finaliser (Steele, Lea,
    Flood, OOPSLA 2014), cut to the fewest numpy calls.
    """
    words = words * _MULTIPLIER_A
    words ^= words >> _HALF
    words *= _MULTIPLIER_B
    words ^= words >> _SHIFT
    return words


def keys(label: int, shape: int | tuple[int, ...]) -> Words:
    """Fixed random-looking words of the given shape, another family for every label."""
    count = int(np.prod(shape))
    start = mix(np.asarray([label + 1], dtype=np.uint64))
    return mix(mix(start + np.arange(count, dtype=np.uint64))).reshape(shape)


def near_normal(words: Words) -> NDArray[np.float64]:
    """Mean 0, variance 1 and almost Gaussian: the sum of each mixed word's four 16-bit lanes.

    Elementwise and exact in float64, so a value depends on its own word alone.
    """
    words = mix(words)
    lanes = (words & _LANES) + ((words >> _SIXTEEN) & _LANES)
    total = (lanes & _LOW) + (lanes >> _HALF)
    return (total.astype(np.float64) - _LANE_MEAN) / _LANE_STD

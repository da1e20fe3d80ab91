"""Ternary weights: from latent floats to trits, and from trits to packed 2-bit codes.

Packed layout, version 1. A code is trit + 1, so 0, 1 and 2 stand for −1, 0 and +1. The inputs
are cut into blocks of 128; byte j (0..31) of a block holds inputs j, j + 32, j + 64 and j + 96
in its bits 0–1, 2–3, 4–5 and 6–7, so that a shift and a mask yield 32 neighbours at once. The
outputs are interleaved by 4, so that one sequential stream feeds four of them:
[outputs / 4, inputs / 128, 4, 32] bytes. What is missing in either direction is padded with
code 1, a zero weight.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import CheckpointError

BLOCK_INPUTS = 128
BLOCK_BYTES = 32
INTERLEAVE = 4
CODES_PER_BYTE = 4
LAYOUT = "ternary2-rows4-inputs128"
"""The name of the layout above, written into packed files beside the version."""

SCALE_FLOOR = 1e-6
"""The least scale of a latent tensor (MODEL.md, "Quantisation")."""

FloatDtype = Literal["fp32", "fp16", "bf16"]

_SAMPLE = 4096
"""Elements that tell most latent tensors from ternary ones without a look at the rest."""
_CHECKED_BYTES = 128 << 10
"""Codes are checked in pieces that stay in the processor's cache."""
_BF16_DROPPED_BITS = 45
"""Significand bits of a float64 that a bfloat16 lacks: 52 − 7."""


def pack_trits(trits: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes of an outputs × inputs matrix of −1, 0 and +1, shaped `packed_shape(trits.shape)`.

    Raises `ValueError` for anything but such a matrix.
    """
    if trits.ndim != 2 or trits.dtype != np.int8 or not trits.size:
        raise ValueError(f"trits must be an int8 matrix, not {trits.dtype} {list(trits.shape)}")
    if trits.min() < -1 or trits.max() > 1:
        raise ValueError("trits must be -1, 0 or +1")
    groups, blocks, _, _ = packed_shape(trits.shape)
    padded = np.ones((groups * INTERLEAVE, blocks * BLOCK_INPUTS), dtype=np.uint8)
    padded[: trits.shape[0], : trits.shape[1]] = (trits + np.int8(1)).view(np.uint8)
    quarters = padded.reshape(groups, INTERLEAVE, blocks, CODES_PER_BYTE, BLOCK_BYTES)
    codes = np.zeros((groups, INTERLEAVE, blocks, BLOCK_BYTES), dtype=np.uint8)
    for quarter in range(CODES_PER_BYTE):
        codes |= quarters[:, :, :, quarter] << np.uint8(2 * quarter)
    return np.ascontiguousarray(codes.transpose(0, 2, 1, 3))


def unpack_trits(codes: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.int8]:
    """The outputs × inputs trits that `pack_trits` packed; `shape` tells the padding apart.

    Raises `ValueError` if the codes do not have the packed shape, or hold a code 3.
    """
    check_codes(codes, shape)
    groups, blocks, _, _ = codes.shape
    trits = np.empty((groups, INTERLEAVE, blocks, CODES_PER_BYTE, BLOCK_BYTES), dtype=np.int8)
    rows = codes.transpose(0, 2, 1, 3)
    for quarter in range(CODES_PER_BYTE):
        code = (rows >> np.uint8(2 * quarter)) & np.uint8(3)
        trits[:, :, :, quarter] = code.view(np.int8) - np.int8(1)
    outputs, inputs = shape
    whole = trits.reshape(groups * INTERLEAVE, blocks * BLOCK_INPUTS)
    return np.ascontiguousarray(whole[:outputs, :inputs])


def packed_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Shape of the codes of an outputs × inputs matrix."""
    outputs, inputs = shape
    return -(-outputs // INTERLEAVE), -(-inputs // BLOCK_INPUTS), INTERLEAVE, BLOCK_BYTES


def check_codes(codes: NDArray[np.uint8], shape: tuple[int, int]) -> None:
    """Raise `ValueError` unless `codes` can be those of an outputs × inputs matrix."""
    if codes.dtype != np.uint8 or codes.shape != packed_shape(shape):
        raise ValueError(
            f"codes of a {shape[0]} × {shape[1]} matrix must be uint8 {list(packed_shape(shape))}, "
            f"not {codes.dtype} {list(codes.shape)}"
        )
    flat = codes.reshape(-1)
    for start in range(0, flat.size, _CHECKED_BYTES):
        piece = flat[start : start + _CHECKED_BYTES]
        # Code 3 has both of its bits set; the mask keeps the low bit of each of the four codes.
        if np.any(piece & (piece >> np.uint8(1)) & np.uint8(0b01010101)):
            raise ValueError("codes must be 0, 1 or 2; a 3 was found")


class TernaryScale(NamedTuple):
    """The scale of a tensor, and whether the tensor held only −s, 0 and +s to begin with."""

    scale: np.float32
    was_ternary: bool


def measure_scale(
    weight: NDArray[np.floating], *, dtype: FloatDtype | None = None, name: str = "weight"
) -> TernaryScale:
    """`ternary_scale`, and whether the tensor was ternary already (all zero counts as such)."""
    dtype = dtype or _float_dtype(weight)
    magnitude = np.abs(weight)
    # A float64 sum of finite float32 values cannot overflow, so this sees every NaN and infinity.
    mean = float(magnitude.mean(dtype=np.float64))
    if not np.isfinite(mean):
        raise CheckpointError(f"{name}: holds NaN or infinite values")
    largest = magnitude.max()
    if largest == 0:
        return TernaryScale(round_to(SCALE_FLOOR, dtype), True)
    if _holds_only(magnitude.reshape(-1)[:_SAMPLE], largest) and _holds_only(magnitude, largest):
        return TernaryScale(np.float32(largest), True)
    return TernaryScale(max(round_to(mean, dtype), round_to(SCALE_FLOOR, dtype)), False)


def ternary_scale(
    weight: NDArray[np.floating], *, dtype: FloatDtype | None = None, name: str = "weight"
) -> np.float32:
    """The scale s of a tensor: mean|W|, at least 1e-6, rounded to the dtype that it is stored in.

    A tensor that holds only −s, 0 and +s is ternary already and keeps its s (mean|W| would be
    s times the share of non-zeros). `dtype` is the stored dtype where it differs from the
    array's: "bf16" for values widened to float32. Raises `CheckpointError`, with `name` in its
    message, for NaN and infinities.
    """
    return measure_scale(weight, dtype=dtype, name=name).scale


def ternarise(
    weight: NDArray[np.floating], *, dtype: FloatDtype | None = None, name: str = "weight"
) -> tuple[NDArray[np.int8], np.float32]:
    """Trits of a tensor, of its own shape, and its scale: +1 above s / 2, −1 below −s / 2.

    The comparisons are strict and made on values of the stored dtype; arguments and errors are
    those of `ternary_scale`.
    """
    scale = ternary_scale(weight, dtype=dtype, name=name)
    return apply_scale(weight, scale, dtype=dtype), scale


def apply_scale(
    weight: NDArray[np.floating], scale: np.float32, *, dtype: FloatDtype | None = None
) -> NDArray[np.int8]:
    """Trits of a tensor whose scale is known."""
    half = round_to(0.5 * float(scale), dtype or _float_dtype(weight))
    return (weight > half).view(np.int8) - (weight < -half).view(np.int8)


def _holds_only(magnitude: NDArray[np.floating], value: np.floating) -> bool:
    return bool(np.all((magnitude == value) | (magnitude == 0)))


def _float_dtype(weight: NDArray[np.floating]) -> FloatDtype:
    if weight.dtype == np.float32:
        return "fp32"
    if weight.dtype == np.float16:
        return "fp16"
    raise ValueError(f"weights must be float32 or float16, not {weight.dtype}")


def round_to(value: float, dtype: FloatDtype) -> np.float32:
    """The value of `dtype` nearest to `value`, ties to even, in one rounding from 64 bits."""
    if dtype == "fp16":
        return np.float32(np.float16(value))
    if dtype == "bf16":
        bits = int(np.float64(value).view(np.uint64))
        odd = (bits >> _BF16_DROPPED_BITS) & 1
        bits += (1 << (_BF16_DROPPED_BITS - 1)) - 1 + odd
        bits &= -1 << _BF16_DROPPED_BITS
        return np.float32(np.uint64(bits).view(np.float64))
    return np.float32(value)

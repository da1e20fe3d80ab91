from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.ternary import (
    measure_scale,
    pack_trits,
    packed_shape,
    ternarise,
    ternary_scale,
    unpack_trits,
)
from engine.errors import CheckpointError
from support.checkpoints import Dtype, stored_values

DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "bf16")


def rounded(value: float, dtype: Dtype) -> float:
    """The slow oracle's rounding: by struct, and for bfloat16 by comparing both neighbours."""
    if dtype != "bf16":
        code = "<e" if dtype == "fp16" else "<f"
        return struct.unpack(code, struct.pack(code, value))[0]
    exponent = math.frexp(value)[1] if value else 0
    step = Fraction(2) ** (exponent - 8)
    quotient = Fraction(value) / step
    return float(round(quotient) * step)


def oracle(weight: np.ndarray, dtype: Dtype) -> tuple[list[int], float]:
    values = [float(value) for value in weight.reshape(-1)]
    magnitudes = {abs(value) for value in values} - {0.0}
    if len(magnitudes) == 1:
        scale = magnitudes.pop()
    else:
        mean = math.fsum(map(abs, values)) / len(values)
        scale = max(rounded(mean, dtype), rounded(1e-6, dtype))
    half = rounded(0.5 * scale, dtype)
    return [1 if value > half else -1 if value < -half else 0 for value in values], scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [1e-6, 1e-4, 0.02, 1.0])
def test_ternarise_equals_a_slow_oracle(dtype: Dtype, spread: float) -> None:
    rng = np.random.default_rng(7)
    for shape in [(1, 1), (3, 5), (37, 61), (128, 256)]:
        values = (rng.standard_normal(shape) * spread).astype(np.float32)
        values[rng.random(shape) < 0.1] = 0
        weight = stored_values(values, dtype)
        trits, scale = ternarise(weight, dtype=dtype)
        expected, expected_scale = oracle(weight, dtype)
        assert trits.dtype == np.int8 and trits.shape == shape
        assert type(scale) is np.float32 and float(scale) == expected_scale
        assert trits.reshape(-1).tolist() == expected


def test_values_at_the_threshold_are_zero() -> None:
    weight = np.array([[0.5, -0.5, 2.0, -1.0]], dtype=np.float32)
    trits, scale = ternarise(weight)
    assert scale == 1.0
    assert trits.tolist() == [[0, 0, 1, -1]]


def test_half_the_scale_is_rounded_to_the_stored_dtype() -> None:
    # Subnormal float16 steps: s is 19 steps, s / 2 = 9.5 rounds to 10, which 10 does not exceed.
    weight = (np.array([[10, -28, 10, 28]]) * 2.0**-24).astype(np.float16)
    trits, scale = ternarise(weight)
    assert scale == np.float32(19 * 2.0**-24)
    assert trits.tolist() == [[0, -1, 0, 1]]


def test_a_bfloat16_scale_is_rounded_once() -> None:
    # The mean is 1 + 2^-8 + 2^-40, just above a tie; by way of float32 it would become the tie.
    weight = np.array([[2, -2, 2.0**-6, 2.0**-38]], dtype=np.float32)
    assert ternary_scale(weight, dtype="bf16") == np.float32(1 + 2.0**-7)
    assert ternary_scale(weight) == np.float32(1 + 2.0**-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_ternary_tensor_keeps_its_own_scale(dtype: Dtype) -> None:
    rng = np.random.default_rng(3)
    trits = rng.integers(-1, 2, size=(70, 90)).astype(np.int8)
    own = stored_values(np.array([0.0371], dtype=np.float32), dtype)[0]
    weight = (trits * own).astype(own.dtype)
    assert measure_scale(weight, dtype=dtype).was_ternary
    found, scale = ternarise(weight, dtype=dtype)
    assert scale == np.float32(own)
    assert np.array_equal(found, trits)
    # One element off, far from the start, and it is a latent tensor whose scale is the mean.
    weight[-1, -1] = own / 2
    assert not measure_scale(weight, dtype=dtype).was_ternary
    assert ternary_scale(weight, dtype=dtype) < np.float32(own)


def test_an_all_zero_tensor_gets_the_least_scale() -> None:
    trits, scale = ternarise(np.zeros((3, 4), dtype=np.float32))
    assert scale == np.float32(1e-6)
    assert not trits.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_that_are_not_finite_are_refused(value: float, dtype: type) -> None:
    weight = np.ones((4, 5), dtype=dtype)
    weight[2, 3] = value
    with pytest.raises(CheckpointError, match=r"layers\.1\.q"):
        ternarise(weight, name="layers.1.q")


def test_large_finite_values_are_not_taken_for_infinite() -> None:
    largest = np.finfo(np.float32).max
    _, scale = ternarise(np.full((50, 50), largest, dtype=np.float32))
    assert scale == largest


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        ternarise(np.ones((2, 2)))


@settings(deadline=None, max_examples=60)
@given(
    outputs=st.integers(1, 13),
    inputs=st.integers(1, 300),
    seed=st.integers(0, 1 << 16),
)
def test_packing_and_unpacking_are_inverse(outputs: int, inputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, size=(outputs, inputs)).astype(np.int8)
    codes = pack_trits(trits)
    assert codes.shape == packed_shape(trits.shape)
    assert codes.dtype == np.uint8 and codes.flags.c_contiguous
    assert np.array_equal(unpack_trits(codes, trits.shape), trits)
    assert np.array_equal(pack_trits(unpack_trits(codes, trits.shape)), codes)


def test_every_code_lies_where_the_layout_says() -> None:
    rng = np.random.default_rng(5)
    outputs, inputs = 6, 200
    trits = rng.integers(-1, 2, size=(outputs, inputs)).astype(np.int8)
    codes = pack_trits(trits)
    assert codes.shape == (2, 2, 4, 32)
    for row in range(8):
        for column in range(256):
            inside = row < outputs and column < inputs
            expected = int(trits[row, column]) + 1 if inside else 1
            block, offset = divmod(column, 128)
            byte = int(codes[row // 4, block, row % 4, offset % 32])
            assert (byte >> 2 * (offset // 32)) & 3 == expected


@pytest.mark.parametrize("quarter", range(4))
def test_a_code_3_is_refused(quarter: int) -> None:
    codes = pack_trits(np.zeros((5, 129), dtype=np.int8))
    codes[1, 1, 3, 31] |= 3 << (2 * quarter)
    with pytest.raises(ValueError, match="a 3"):
        unpack_trits(codes, (5, 129))


def test_codes_of_another_shape_are_refused() -> None:
    codes = pack_trits(np.zeros((5, 129), dtype=np.int8))
    for shape in [(9, 129), (5, 128), (4, 129)]:
        with pytest.raises(ValueError, match=r"\[2, 2, 4, 32\]"):
            unpack_trits(codes, shape)


def test_packing_refuses_what_is_not_a_trit() -> None:
    for value in (-2, 2):
        with pytest.raises(ValueError, match="must be -1, 0 or"):
            pack_trits(np.full((2, 2), value, dtype=np.int8))
    with pytest.raises(ValueError, match="int8 matrix"):
        pack_trits(np.zeros(4, dtype=np.int8))

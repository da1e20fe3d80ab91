"""The decoder's linears against their formulas, to the bit."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard as hadamard_matrix

from engine.config import Hadamard
from engine.model.linears import DenseMatrix, TernaryMatrix, butterflies, hadamard, quantise

CPU = torch.device("cpu")
Floats = NDArray[np.float32]


def quantised(values: list[float], largest: int = 127) -> tuple[list[float], float]:
    q, peak = quantise(torch.tensor([values]), largest)
    return q[0].tolist(), peak.item()


def test_four_bits_are_fifteen_levels():
    # With the peak at 7, x·7/a is x itself.
    q, peak = quantised([7.0, -7.0, 0.5, 1.5, -2.5, 6.6, 0.4], 7)
    assert (peak, q) == (7.0, [7.0, -7.0, 0.0, 2.0, -2.0, 7.0, 0.0])


def test_quantise_of_a_zero_row_is_zero():
    assert quantised([0.0, -0.0, 0.0]) == ([0.0, 0.0, 0.0], np.float32(1e-6))


def test_quantise_takes_the_smallest_peak_for_tiny_rows():
    q, peak = quantised([1e-7, -5e-7])
    assert peak == np.float32(1e-6)
    assert q == [13.0, -64.0]  # 12.7 and −63.5 (as float32: x·127/a is a tie), to even


def test_quantise_rounds_ties_to_even():
    # With the peak at 127, x·127/a is x itself.
    ties = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5, 126.5]
    q, peak = quantised([127.0, *ties])
    assert peak == 127.0
    assert q == [127.0, 0.0, 2.0, 2.0, -0.0, -2.0, -2.0, 64.0, 126.0]


def test_quantise_keeps_huge_values_in_range():
    largest = float(np.finfo(np.float32).max)
    q, peak = quantised([largest, -largest, largest / 1000, 1.0])
    assert peak == largest
    # x·127 overflows to infinity, which the clamp brings back.
    assert q == [127.0, -127.0, 127.0 / 1000 // 1, 0.0]


@pytest.mark.parametrize("largest", [127, 7])
def test_quantise_rounds_each_step_in_float32(largest: int):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((200, 33)) * 10.0 ** rng.integers(-8, 8, (200, 1))).astype(np.float32)
    peak = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-6))
    expected = np.clip(np.rint((x * np.float32(largest)) / peak), -largest, largest)
    q, actual_peak = quantise(torch.from_numpy(x), largest)
    np.testing.assert_array_equal(q.numpy(), expected)
    np.testing.assert_array_equal(actual_peak.numpy(), peak)


def test_ternary_matrix_follows_the_formula_to_the_bit():
    rng = np.random.default_rng(1)
    trits = [rng.integers(-1, 2, (count, 37)).astype(np.int8) for count in (5, 3, 8)]
    scales = [np.float32(value) for value in (0.0371, 1.3, 0.11)]
    x = rng.standard_normal((11, 37)).astype(np.float32)
    actual = TernaryMatrix.fuse(trits, scales, CPU)(torch.from_numpy(x)).numpy()

    peak = np.abs(x).max(axis=1, keepdims=True)
    q = np.rint((x * np.float32(127)) / peak).astype(np.int64)
    parts = [
        (q @ matrix.T.astype(np.int64)).astype(np.float32) * ((peak / np.float32(127)) * scale)
        for matrix, scale in zip(trits, scales, strict=True)
    ]
    np.testing.assert_array_equal(actual, np.concatenate(parts, axis=1))
    assert actual.dtype == np.float32


def test_ternary_matrix_never_gives_a_negative_zero():
    matrix = TernaryMatrix.fuse([np.array([[1, -1], [0, 0]], np.int8)], [np.float32(1)], CPU)
    outputs = matrix(torch.tensor([[-1.0, -1.0], [-0.0, 0.0]]))
    assert not outputs.signbit().any()


def transformed(x: Floats) -> Floats:
    """Butterflies one pair at a time, strides rising, every step in float32."""
    x = x.copy()
    stride = 1
    while stride < x.shape[1]:
        for i in range(x.shape[1]):
            if not i & stride:
                low, high = x[:, i].copy(), x[:, i + stride].copy()
                x[:, i], x[:, i + stride] = low + high, low - high
        stride *= 2
    return x


def inverse_root(size: int) -> np.float32:
    return np.float32(1 / math.sqrt(size))


@pytest.mark.parametrize("size", [1, 2, 8, 32, 128])
def test_butterflies_follow_their_order_to_the_bit(size: int):
    x = np.random.default_rng(size).standard_normal((5, size)).astype(np.float32)
    np.testing.assert_array_equal(butterflies(torch.from_numpy(x)).numpy(), transformed(x))
    expected = transformed(x) * inverse_root(size)
    np.testing.assert_array_equal(hadamard(torch.from_numpy(x.copy())).numpy(), expected)


@pytest.mark.parametrize("size", [1, 2, 64, 256])
def test_the_transform_is_the_orthonormal_hadamard_matrix(size: int):
    x = np.random.default_rng(size).standard_normal((3, size)).astype(np.float32)
    expected = x.astype(np.float64) @ hadamard_matrix(size) / math.sqrt(size)
    actual = hadamard(torch.from_numpy(x.copy()))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hadamard(actual).numpy(), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("largest", "order"), [*product((127, 7), ("before", "after"))])
def test_hadamard_linears_follow_the_formulas_to_the_bit(largest: int, order: Hadamard):
    rng = np.random.default_rng(largest)
    size, counts = 64, (16, 4, 8)
    trits = [rng.integers(-1, 2, (count, size)).astype(np.int8) for count in counts]
    scales = [np.float32(value) for value in (0.0371, 1.3, 0.11)]
    x = rng.standard_normal((9, size)).astype(np.float32)
    matrix = TernaryMatrix.fuse(trits, scales, CPU, activation_max=largest, hadamard=order)
    actual = matrix(torch.from_numpy(x.copy())).numpy()

    turned = transformed(x) * inverse_root(size) if order == "before" else x
    peak = np.abs(turned).max(axis=1, keepdims=True)
    q = np.rint((turned * np.float32(largest)) / peak).astype(np.int64)
    if order == "after":
        q = q @ hadamard_matrix(size)
    parts = []
    for ternary, scale in zip(trits, scales, strict=True):
        factor = (peak / np.float32(largest)) * scale
        if order == "after":
            factor = factor * inverse_root(size)
        y = (q @ ternary.T.astype(np.int64)).astype(np.float32) * factor
        parts.append(transformed(y) * inverse_root(len(ternary)))
    np.testing.assert_array_equal(actual, np.concatenate(parts, axis=1))


@pytest.mark.parametrize("size", [2, 256, 4096, 65_536])
def test_transformed_integers_beyond_24_bits_are_summed_exactly(size: int):
    """Rows whose transforms, and products with them, are as large as can be."""
    rng = np.random.default_rng(size)
    signs = rng.choice([-1.0, 1.0], (3, size)).astype(np.float32)
    # A row of the matrix turns into one peak of 127·n; random signs spread theirs evenly.
    signs[0] = 1.0
    signs[1] = transformed(np.eye(1, size, size // 2, dtype=np.float32))[0]
    sums = transformed(signs * 127).astype(np.int64)
    assert np.abs(sums).max() == 127 * size
    trits = np.stack([np.sign(sums[2]), *rng.integers(-1, 2, (3, size))]).astype(np.int8)
    expected = (sums @ trits.T.astype(np.int64)).astype(np.float32)
    matrix = TernaryMatrix.fuse([trits], [np.float32(1)], CPU, hadamard="after")
    actual = matrix(torch.from_numpy(signs)).numpy()
    factor = (np.float32(1) / np.float32(127)) * inverse_root(size)
    np.testing.assert_array_equal(actual, transformed(expected * factor) * inverse_root(4))
    assert size < 4096 or np.abs(expected).max() > 2**24


def test_dense_linears_are_float_products():
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal((count, 37)).astype(np.float16) for count in (5, 3)]
    x = rng.standard_normal((4, 37)).astype(np.float32)
    actual = DenseMatrix.fuse(weights, CPU)(torch.from_numpy(x))
    assert actual.dtype == torch.float32
    expected = x.astype(np.float64) @ np.concatenate(weights).T.astype(np.float64)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)

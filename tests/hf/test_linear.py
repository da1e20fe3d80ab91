"""The quantised linear: MODEL.md's arithmetic forward, straight through backward."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.checkpoint.ternary import ternarise as loader_ternarise
from engine.hf.linear import TernaryLinear, is_ternary, ternarise
from engine.model.linears import TernaryMatrix
from support.family import TERNARY, family_config
from support.sequences import assert_same_bits

INPUTS, OUTPUTS = 64, 32


def make_linear(variant: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> TernaryLinear:
    linear = TernaryLinear(INPUTS, OUTPUTS, family_config(variant))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator) / 8
    linear.weight = torch.nn.Parameter(weight.to(dtype))
    return linear


def make_inputs(*shape: int, seed: int = 1) -> Tensor:
    return 3 * torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(seed))


def as_numpy(weight: Tensor) -> tuple[np.ndarray, Any]:
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    stored = weight.detach()
    return (stored if stored.dtype == torch.float16 else stored.float()).numpy(), names[
        stored.dtype
    ]


def expected(linear: TernaryLinear, x: Tensor) -> np.ndarray:
    values, dtype = as_numpy(linear.weight)
    trits, scale = loader_ternarise(values, dtype=dtype)
    matrix = TernaryMatrix.fuse(
        [trits],
        [scale],
        torch.device("cpu"),
        activation_max=linear.activation_max,
        hadamard=linear.hadamard,
    )
    return matrix(x.reshape(-1, INPUTS).clone()).reshape(*x.shape[:-1], OUTPUTS).numpy()


@pytest.mark.parametrize("variant", TERNARY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_outputs_are_the_reference_backends_to_the_bit(variant: str, dtype: torch.dtype) -> None:
    linear = make_linear(variant, dtype)
    for x in (make_inputs(7), make_inputs(2, 3), torch.zeros(1, INPUTS), make_inputs()):
        assert_same_bits(linear(x).detach().numpy(), expected(linear, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(20))
def test_weights_are_ternarised_as_the_loader_does(dtype: torch.dtype, seed: int) -> None:
    weight = make_linear("v1", dtype, seed).weight
    values, name = as_numpy(weight)
    trits, scale = loader_ternarise(values, dtype=name)
    ours, our_scale = ternarise(weight)
    assert np.array_equal(ours.numpy(), trits) and our_scale == float(scale)
    assert not is_ternary(weight)
    again, same_scale = ternarise(ours.to(dtype) * our_scale)
    assert torch.equal(again, ours) and same_scale == our_scale
    assert is_ternary(ours.to(dtype) * our_scale)


def test_a_tensor_of_zeros_is_ternary() -> None:
    trits, scale = ternarise(torch.zeros(3, 5))
    assert not trits.any() and scale == float(np.float32(1e-6))
    assert is_ternary(torch.zeros(3, 5))


def hadamard_matrix(size: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


@pytest.mark.parametrize("variant", TERNARY)
def test_gradients_pass_straight_through(variant: str) -> None:
    """As if y = Q·W̃ᵀ, with the rounded inputs Q and weights W̃, and transforms where they are."""
    linear = make_linear(variant)
    x = make_inputs(5).requires_grad_()
    pull = torch.randn(5, OUTPUTS, generator=torch.Generator().manual_seed(2))
    (linear(x) * pull).sum().backward()

    trits, scale = ternarise(linear.weight)
    inputs, outputs = (
        torch.eye(size, dtype=torch.float64) if linear.hadamard == "none" else hadamard_matrix(size)
        for size in (INPUTS, OUTPUTS)
    )
    rounded = x.detach().double()
    if linear.hadamard != "after":
        rounded = rounded @ inputs
    peak = rounded.abs().amax(dim=1, keepdim=True)
    levels = linear.activation_max
    rounded = (rounded * levels / peak).round() * peak / levels
    if linear.hadamard == "after":
        rounded = rounded @ inputs
    pulled = pull.double() @ outputs
    torch.testing.assert_close(linear.weight.grad, (pulled.T @ rounded).float())
    torch.testing.assert_close(x.grad, (pulled @ (trits.double() * scale) @ inputs).float())


def test_a_held_weight_is_ternarised_once_and_let_go() -> None:
    linear, x = make_linear("v1"), make_inputs(2)
    before = linear(x)
    linear.hold(True)
    assert torch.equal(linear(x), before)
    with torch.no_grad():
        linear.weight.neg_()
    assert torch.equal(linear(x), before)
    linear.hold(False)
    assert torch.equal(linear(x), -before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outside_leaves_the_integers_exact(dtype: torch.dtype) -> None:
    linear, x = make_linear("v3"), make_inputs(4).to(dtype)
    exact = linear(x.float()).detach()
    y = linear(x)
    assert y.dtype == dtype
    assert torch.equal(y, exact.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear(x.float()), exact)

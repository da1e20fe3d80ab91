"""The trainable decoder: quantisers, straight-through gradients, exits, dropped layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint import ternary
from engine.config import ModelConfig
from engine.training.linears import Linear, project, ternarise
from engine.training.modules import TrainableDecoder, causal_attention
from support.memory_checkpoint import tiny_config

CONFIG = tiny_config(num_layers=3)


@pytest.fixture
def model() -> TrainableDecoder:
    return seeded(CONFIG)


def seeded(config: ModelConfig) -> TrainableDecoder:
    torch.manual_seed(3)
    return TrainableDecoder(config)


def random_tokens(num_sequences: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randint(0, CONFIG.vocab_size, (num_sequences, length), generator=generator)


def explicit_ternary(weight: Tensor) -> Tensor:
    scale = max(float(weight.double().abs().mean()), 1e-6)
    rows = [[(w > scale / 2) - (w < -scale / 2) for w in row] for row in weight.tolist()]
    return torch.tensor(rows) * scale


def explicit_quantised(x_NK: Tensor, levels: int) -> Tensor:
    rows = []
    for row in x_NK.double().tolist():
        peak = max(*(abs(x) for x in row), 1e-6)
        rows.append([round(x * levels / peak) * peak / levels for x in row])
    return torch.tensor(rows)


@pytest.mark.parametrize("shape", [(3, 5), (64, 48), (512, 256)])
@pytest.mark.parametrize("spread", [1e-9, 0.03, 7.0])
def test_trits_are_those_of_the_loader(shape: tuple[int, int], spread: float) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        weight = torch.randn(shape, generator=generator) * spread
        trits, scale = ternary.ternarise(weight.numpy())
        found, found_scale = ternarise(weight)
        np.testing.assert_array_equal(found.numpy(), trits)
        assert found_scale.item() == scale


def test_a_weight_at_the_threshold_is_zero() -> None:
    # mean|W| = 1 exactly, so the thresholds are ±0.5.
    weight = torch.tensor([[0.5, -0.5, 1.0, -2.0]])
    assert ternarise(weight)[0].tolist() == [[0.0, 0.0, 1.0, -1.0]]
    assert ternarise(torch.zeros(2, 2))[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]


VARIANTS = {
    "v1": tiny_config(),
    "v1-4bit": tiny_config(activation_bits=4),
    "v2": tiny_config(activation_bits=4, hadamard="before"),
    "v3": tiny_config(hadamard="before"),
    "v3-quantise-first": tiny_config(hadamard="after"),
    "dense": tiny_config(weights="dense"),
}


def hadamard_matrix(size: int) -> Tensor:
    """Sylvester's, by the parity of common bits."""
    index = range(size)
    rows = [[(-1.0) ** ((i & j).bit_count()) for j in index] for i in index]
    return torch.tensor(rows) / size**0.5


def explicit_linear(config: ModelConfig, x_NK: Tensor, weight: Tensor) -> Tensor:
    if config.is_dense:
        return x_NK @ weight.T
    first, last = (hadamard_matrix(size) for size in (weight.shape[1], weight.shape[0]))
    levels = config.activation_max
    if config.hadamard == "none":
        return explicit_quantised(x_NK, levels) @ explicit_ternary(weight).T
    if config.hadamard == "before":
        rotated_NK = explicit_quantised(x_NK @ first, levels)
    else:
        rotated_NK = explicit_quantised(x_NK, levels) @ first
    return rotated_NK @ explicit_ternary(weight).T @ last


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_is_the_explicit_formula(variant: str) -> None:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    x_NK = torch.randn(6, 16, generator=generator)
    linears = (Linear(16, 8), Linear(16, 4))
    found = project(VARIANTS[variant], torch.float32, x_NK, *linears)
    for linear, y_NM in zip(linears, found, strict=True):
        expected = explicit_linear(VARIANTS[variant], x_NK, linear.weight.detach())
        torch.testing.assert_close(y_NM, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_pass_straight_through_both_quantisers(variant: str) -> None:
    config = VARIANTS[variant]
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    linears = (Linear(16, 8), Linear(16, 4))
    upstream = [torch.randn(6, size, generator=generator) for size in (8, 4)]

    x_NK = torch.randn(6, 16, generator=generator, requires_grad=True)
    torch.autograd.backward(project(config, torch.float32, x_NK, *linears), upstream)
    actual = [x_NK.grad, *(linear.weight.grad for linear in linears)]

    twin_NK = x_NK.detach().clone().requires_grad_()
    twins = [linear.weight.detach().clone().requires_grad_() for linear in linears]
    outputs = [straight_through(config, twin_NK, weight) for weight in twins]
    torch.autograd.backward(outputs, upstream)
    for found, expected in zip(actual, [twin_NK.grad, *(w.grad for w in twins)], strict=True):
        assert found is not None and found.abs().sum() > 0
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def straight_through(config: ModelConfig, x_NK: Tensor, weight: Tensor) -> Tensor:
    """The detach trick: the quantised value forwards, the identity backwards."""
    if config.is_dense:
        return x_NK @ weight.T
    none = torch.eye(weight.shape[1]), torch.eye(weight.shape[0])
    both = hadamard_matrix(weight.shape[1]), hadamard_matrix(weight.shape[0])
    first, last = none if config.hadamard == "none" else both
    before, after = (first, none[0]) if config.hadamard == "before" else (none[0], first)
    x_NK = x_NK @ before
    x_NK = x_NK + (explicit_quantised(x_NK.detach(), config.activation_max) - x_NK).detach()
    ternary = weight + (explicit_ternary(weight.detach()) - weight).detach()
    return x_NK @ after @ ternary.T @ last


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_products_are_near_and_their_results_float32(variant: str) -> None:
    torch.manual_seed(3)
    x_NK, linear = torch.randn(6, 64), Linear(64, 32)
    exact, rounded = (
        project(VARIANTS[variant], dtype, x_NK, linear)[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32
    # Sums of 64 four-bit integers are few enough bits for bfloat16 too.
    assert torch.equal(exact, rounded) == (variant in ("v1-4bit", "v2"))
    assert (exact - rounded).norm() < 0.01 * exact.norm()


def test_attention_is_torchs_own() -> None:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    mask_TT = torch.full((9, 9), float("-inf")).triu(1)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    found = causal_attention(q, k, v, mask_TT).view(2, 9, 4, 8).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_a_dropped_layer_leaves_the_residual_unchanged(model: TrainableDecoder) -> None:
    tokens_BT = random_tokens(2, 9)
    outputs = model(tokens_BT, {1, 2, 3}, dropped={1})
    assert torch.equal(outputs[2], outputs[1])
    assert not torch.equal(outputs[3], outputs[2])
    everything_dropped = model(tokens_BT, {3}, dropped=range(3))
    assert torch.equal(everything_dropped[3], model.embed_tokens(tokens_BT.reshape(-1)))


def test_a_dropped_layer_gets_no_gradient(model: TrainableDecoder) -> None:
    tokens_BT = random_tokens(2, 9)
    hidden_ND = model(tokens_BT[:, :-1], {3}, dropped={1})[3]
    F.cross_entropy(model.logits(hidden_ND, 3), tokens_BT[:, 1:].reshape(-1)).backward()
    without = {n.split(".")[1] for n, p in model.named_parameters() if p.grad is None}
    assert without == {"1"}


def test_an_exit_is_the_model_of_that_depth(model: TrainableDecoder) -> None:
    tokens_BT = random_tokens(2, 9)
    outputs = model(tokens_BT, {1, 2, 3})
    assert sorted(outputs) == [1, 2, 3]
    for depth in (1, 2):
        shallow = TrainableDecoder(tiny_config(num_layers=depth))
        shallow.load_state_dict(model.state_dict(), strict=False)
        assert torch.equal(outputs[depth], shallow(tokens_BT, {depth})[depth])
        torch.testing.assert_close(
            model.logits(outputs[depth], depth), shallow.logits(outputs[depth], depth)
        )


def test_the_final_norm_applies_at_exits_as_configured() -> None:
    model = seeded(tiny_config(num_layers=3, exit_norm=False))
    hidden_ND = torch.randn(4, CONFIG.hidden_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.logits(hidden_ND, 2), model.lm_head(hidden_ND))
    assert torch.equal(model.logits(hidden_ND, 3), model.lm_head(model.norm(hidden_ND)))


def test_no_position_sees_a_later_token(model: TrainableDecoder) -> None:
    tokens_BT = random_tokens(1, 12)
    changed_BT = tokens_BT.clone()
    changed_BT[0, 7] = (changed_BT[0, 7] + 1) % CONFIG.vocab_size
    before, after = model(tokens_BT, {3})[3], model(changed_BT, {3})[3]
    assert torch.equal(before[:7], after[:7])
    assert (before[7:] != after[7:]).any(dim=1).all()


def test_sequences_of_a_batch_do_not_mix(model: TrainableDecoder) -> None:
    tokens_BT = random_tokens(3, 8)
    together = model(tokens_BT, {3})[3].view(3, 8, -1)
    for index in range(3):
        alone = model(tokens_BT[index : index + 1], {3})[3]
        # A batch may take another matmul kernel; mixing would be far beyond rounding.
        error = (together[index] - alone).abs().median()
        assert error < 1e-4

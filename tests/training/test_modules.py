"""The trainable decoder: quantisers, straight-through gradients, exits, dropped layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.checkpoint import ternary
from engine.config import ModelConfig
from engine.training.modules import (
    TernaryLinear,
    TrainableDecoder,
    fake_quantise,
    parameter_groups,
    ternarise,
    ternary_matmul,
)
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


def explicit_quantised(x_ND: Tensor) -> Tensor:
    rows = []
    for row in x_ND.double().tolist():
        peak = max(*(abs(x) for x in row), 1e-6)
        rows.append([round(x * 127 / peak) * peak / 127 for x in row])
    return torch.tensor(rows)


@pytest.mark.parametrize("shape", [(3, 5), (64, 48), (512, 256)])
@pytest.mark.parametrize("spread", [1e-9, 0.03, 7.0])
def test_trits_are_those_of_the_loader(shape: tuple[int, int], spread: float) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        weight = torch.randn(shape, generator=generator) * spread
        trits, scale = ternary.ternarise(weight.numpy())
        np.testing.assert_array_equal(ternarise(weight).numpy(), trits * scale)


def test_a_weight_at_the_threshold_is_zero() -> None:
    # mean|W| = 1 exactly, so the thresholds are ±0.5.
    weight = torch.tensor([[0.5, -0.5, 1.0, -2.0]])
    assert ternarise(weight).tolist() == [[0.0, 0.0, 1.0, -1.0]]
    assert ternarise(torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_activations_are_rounded_to_127_steps_of_the_row_peak() -> None:
    x_ND = torch.tensor([[127.0, 0.5, 1.5, -2.5, 3.2], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert fake_quantise(x_ND).tolist() == [[127.0, 0.0, 2.0, -2.0, 3.0], [0.0] * 5]
    scaled = fake_quantise(x_ND * 0.01)
    torch.testing.assert_close(scaled[0], torch.tensor([1.27, 0.0, 0.02, -0.02, 0.03]))


def test_forward_is_the_explicit_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    x_ND = torch.randn(6, 16, generator=generator)
    first, second = TernaryLinear(16, 8), TernaryLinear(16, 4)
    weights = torch.cat([explicit_ternary(linear.weight.detach()) for linear in (first, second)])
    expected = explicit_quantised(x_ND) @ weights.T
    torch.testing.assert_close(ternary_matmul(x_ND, first, second), expected)


def test_gradients_pass_straight_through_both_quantisers() -> None:
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    linears = (TernaryLinear(16, 8), TernaryLinear(16, 4))
    upstream = torch.randn(6, 12, generator=generator)

    x_ND = torch.randn(6, 16, generator=generator, requires_grad=True)
    ternary_matmul(x_ND, *linears).backward(upstream)
    actual = [x_ND.grad, *(linear.weight.grad for linear in linears)]

    twin_ND = x_ND.detach().clone().requires_grad_()
    twins = [linear.weight.detach().clone().requires_grad_() for linear in linears]
    # The detach trick: the quantised value forwards, the identity backwards.
    quantised_ND = twin_ND + (fake_quantise(twin_ND) - twin_ND).detach()
    ternaries = [weight + (ternarise(weight) - weight).detach() for weight in twins]
    (quantised_ND @ torch.cat(ternaries).T).backward(upstream)

    for found, expected in zip(actual, [twin_ND.grad, *(w.grad for w in twins)], strict=True):
        assert found is not None and found.abs().sum() > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


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
    model.exit_loss(hidden_ND, tokens_BT[:, 1:].reshape(-1), 3).backward()
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


def test_matrices_decay_and_gains_do_not(model: TrainableDecoder) -> None:
    matrices, gains = parameter_groups(model, 0.05)
    assert (matrices["weight_decay"], gains["weight_decay"]) == (0.05, 0.0)
    assert all(parameter.dim() == 2 for parameter in matrices["params"])
    assert len(gains["params"]) == 2 * 3 + 1
    assert len(matrices["params"]) + len(gains["params"]) == len(list(model.parameters()))

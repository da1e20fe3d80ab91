"""What a step minimises, and which parameters feel it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.training.losses import StepLosses, distillation_loss, head_loss, step_losses
from engine.training.modules import TrainableDecoder
from engine.training.recipe import TrainingConfig
from support.memory_checkpoint import tiny_config

DEPTH = 4
MODEL = tiny_config(num_layers=DEPTH)


def config(**overrides: Any) -> TrainingConfig:
    return TrainingConfig(MODEL, batch_tokens=128, max_steps=1, **overrides)


@pytest.fixture
def model() -> TrainableDecoder:
    torch.manual_seed(3)
    return TrainableDecoder(MODEL)


@pytest.fixture
def batch_BT() -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randint(0, MODEL.vocab_size, (2, 9), generator=generator)


def losses(
    model: TrainableDecoder, batch_BT: Tensor, recipe: TrainingConfig, weights: dict[int, float]
) -> StepLosses:
    outputs = model(batch_BT[:, :-1], {DEPTH, *weights})
    return step_losses(model, recipe, outputs, batch_BT[:, 1:].reshape(-1), weights)


def test_losses_are_cross_entropies_through_the_shared_head(
    model: TrainableDecoder, batch_BT: Tensor
) -> None:
    found = losses(model, batch_BT, config(exit_loss_weight=0.4), {1: 0.25, 3: 0.75})
    outputs = model(batch_BT[:, :-1], {1, 3, DEPTH})
    expected = {
        exit_layer: F.cross_entropy(
            model.logits(outputs[exit_layer], exit_layer), batch_BT[:, 1:].reshape(-1)
        )
        for exit_layer in (1, 3, DEPTH)
    }
    torch.testing.assert_close(found.full, expected[DEPTH])
    torch.testing.assert_close(found.by_exit, {1: expected[1], 3: expected[3]})
    torch.testing.assert_close(found.early, 0.25 * expected[1] + 0.75 * expected[3])
    torch.testing.assert_close(found.total, found.full + 0.4 * found.early)


def test_without_exits_the_full_depth_is_all(model: TrainableDecoder, batch_BT: Tensor) -> None:
    found = losses(model, batch_BT, config(exit_loss_weight=0.0), {})
    assert found.by_exit == {} and found.early == 0.0
    assert torch.equal(found.total, found.full)


def test_distillation_is_the_divergence_from_the_last_layer() -> None:
    generator = torch.Generator().manual_seed(1)
    exit_NV, final_NV = (3 * torch.randn(5, 7, generator=generator) for _ in range(2))
    for temperature in (1.0, 2.5):
        p, q = ((x.double() / temperature).softmax(dim=-1) for x in (final_NV, exit_NV))
        expected = temperature**2 * (p * (p / q).log()).sum(dim=-1).mean()
        found = distillation_loss(exit_NV, final_NV, temperature)
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert distillation_loss(final_NV, final_NV, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_distillation_and_text_are_mixed_by_weight(
    model: TrainableDecoder, batch_BT: Tensor
) -> None:
    text, distilled, mixed = (
        losses(model, batch_BT, config(distill_weight=weight), {2: 1.0}).by_exit[2]
        for weight in (0.0, 1.0, 0.3)
    )
    assert not torch.isclose(text, distilled)
    torch.testing.assert_close(mixed, 0.7 * text + 0.3 * distilled)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_distillation_teaches_the_exit_and_not_the_last_layer(
    model: TrainableDecoder, batch_BT: Tensor, weight: float
) -> None:
    found = losses(model, batch_BT, config(distill_weight=weight), {2: 1.0})
    found.by_exit[2].backward()
    with_gradient = {
        int(name.split(".")[1])
        for name, parameter in model.named_parameters()
        if name.startswith("layers.") and parameter.grad is not None and parameter.grad.any()
    }
    assert with_gradient == {0, 1}


def test_the_last_layers_gradient_is_as_without_distillation(
    model: TrainableDecoder, batch_BT: Tensor
) -> None:
    gradients: list[Tensor] = []
    for weight in (0.0, 1.0):
        model.zero_grad()
        losses(model, batch_BT, config(distill_weight=weight), {2: 1.0}).total.backward()
        gradient = model.layers[DEPTH - 1].get_parameter("mlp.down_proj.weight").grad
        assert gradient is not None and gradient.any()
        gradients.append(gradient.clone())
    assert torch.equal(*gradients)


def test_an_exit_without_norm_is_trained_without(batch_BT: Tensor) -> None:
    bare = TrainableDecoder(tiny_config(num_layers=DEPTH, exit_norm=False))
    recipe = TrainingConfig(bare.config, batch_tokens=128, max_steps=1)
    outputs = bare(batch_BT[:, :-1], {1, DEPTH})
    targets_N = batch_BT[:, 1:].reshape(-1)
    found = step_losses(bare, recipe, outputs, targets_N, {1: 1.0})
    expected, _ = head_loss(bare, outputs[1], targets_N, None, False, 0.0, 1.0)
    other, _ = head_loss(bare, outputs[1], targets_N, None, True, 0.0, 1.0)
    torch.testing.assert_close(found.by_exit[1], expected)
    assert not torch.isclose(expected, other)

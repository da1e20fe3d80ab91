"""Which optimiser updates what."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from engine.training.modules import TrainableDecoder
from engine.training.optimizers import Optimizers
from engine.training.recipe import TrainingConfig
from support.memory_checkpoint import tiny_config

MODEL = tiny_config(num_layers=3)


def optimizers(model: TrainableDecoder, **overrides: Any) -> Optimizers:
    fields: dict[str, Any] = {"layer_dropout": "none", "max_steps": 1, **overrides}
    return Optimizers(model, TrainingConfig(MODEL, batch_tokens=128, **fields))


@pytest.fixture
def model() -> TrainableDecoder:
    torch.manual_seed(3)
    return TrainableDecoder(MODEL)


def give_gradients(model: TrainableDecoder) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_decay_and_gains_do_not(model: TrainableDecoder, name: str) -> None:
    decays: dict[float, list[torch.Tensor]] = {}
    for group in optimizers(model, optimizer=name, weight_decay=0.07).groups():
        decays.setdefault(group["weight_decay"], []).extend(group["params"])
    assert sorted(decays) == [0.0, 0.07]
    assert all(parameter.dim() == 2 for parameter in decays[0.07])
    assert len(decays[0.0]) == 2 * 3 + 1
    assert len(decays[0.07]) + len(decays[0.0]) == len(list(model.parameters()))


def test_muon_updates_layers_by_directions_of_equal_size(model: TrainableDecoder) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    give_gradients(model)
    optimizers(model, optimizer="muon", weight_decay=0.0).step(0.01)
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    singular = torch.linalg.svdvals(moved["layers.1.mlp.up_proj.weight"])
    assert singular.max() < 2 * singular.min(), "a random gradient's differ much more"
    # AdamW's first step is the rate, whatever the gradient.
    for name in ("lm_head.weight", "embed_tokens.weight", "norm.weight"):
        torch.testing.assert_close(moved[name].abs(), torch.full_like(moved[name], 0.01))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_uses_the_rate_and_drops_gradients(model: TrainableDecoder, name: str) -> None:
    both = optimizers(model, optimizer=name)
    give_gradients(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    both.step(0.0)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())
    give_gradients(model)
    both.step(0.01)
    assert not any(map(torch.equal, before, model.parameters()))


def test_state_goes_on_in_another_object(model: TrainableDecoder) -> None:
    first = optimizers(model, optimizer="muon")
    give_gradients(model)
    first.step(0.01)
    twin = TrainableDecoder(MODEL)
    twin.load_state_dict(model.state_dict())
    second = optimizers(twin, optimizer="muon")
    second.load_state_dict(deepcopy(first.state_dict()))
    for each, go_on in ((model, first), (twin, second)):
        give_gradients(each)
        go_on.step(0.01)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))

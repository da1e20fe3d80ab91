"""First weights: random ones by seed, and those of a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.names import LINEARS, linear_name
from engine.checkpoint.packing import pack_checkpoint
from engine.config import ModelConfig
from engine.training.initial import initial_model, latent_of
from engine.training.linears import ternarise
from engine.training.modules import TrainableDecoder
from engine.training.recipe import TrainingConfig
from engine.training.trainer import export_checkpoint
from support.memory_checkpoint import tiny_config

MODEL = tiny_config(num_layers=3)


def recipe(model: ModelConfig = MODEL, seed: int = 0) -> TrainingConfig:
    return TrainingConfig(model, batch_tokens=128, layer_dropout="none", max_steps=1, seed=seed)


@pytest.fixture
def model() -> TrainableDecoder:
    torch.manual_seed(12)
    return TrainableDecoder(MODEL)


def test_random_weights_follow_from_the_seed() -> None:
    first, again, other = (initial_model(recipe(seed=seed), None) for seed in (1, 1, 2))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("weights", ["latent", "dense"])
def test_float_weights_are_gone_on_from_as_they_are(tmp_path: Path, weights: str) -> None:
    torch.manual_seed(12)
    model = TrainableDecoder(replace(MODEL, weights=weights))
    export_checkpoint(model, None, tmp_path)
    with load_checkpoint(tmp_path) as start:
        assert start.config == model.config
        found = initial_model(recipe(start.config), start).state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_a_packed_model_is_gone_on_from_as_the_same_function(
    tmp_path: Path, model: TrainableDecoder
) -> None:
    export_checkpoint(model, None, tmp_path / "latent")
    pack_checkpoint(tmp_path / "latent", tmp_path / "packed")
    with load_checkpoint(tmp_path / "packed") as start:
        found = initial_model(recipe(), start).state_dict()
        for layer in range(MODEL.num_layers):
            for linear in LINEARS:
                packed = start.linear(layer, linear)
                trits, scale = ternarise(found[linear_name(layer, linear)])
                assert torch.equal(trits, torch.from_numpy(packed.trits).float())
                assert scale.item() == pytest.approx(float(packed.scale), rel=1e-5)
    assert torch.equal(found["lm_head.weight"], model.lm_head.weight)
    assert torch.equal(found["layers.1.input_layernorm.weight"], torch.ones(MODEL.hidden_size))


@pytest.mark.parametrize("share_of_zeros", [0.0, 0.1, 0.35, 0.9])
def test_latent_weights_of_a_ternary_one(share_of_zeros: float) -> None:
    generator = torch.Generator().manual_seed(2)
    is_zero = torch.rand(64, 96, generator=generator) < share_of_zeros
    signs = torch.randint(0, 2, (64, 96), generator=generator) * 2 - 1
    trits = torch.where(is_zero, 0, signs)
    latent = latent_of(trits, 0.05)
    found, scale = ternarise(latent)
    assert torch.equal(found, trits.float())
    assert scale.item() == pytest.approx(0.05, rel=1e-5)
    assert latent.unique().numel() > 6000, "no two alike"

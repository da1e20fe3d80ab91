"""Gradients through the transformers classes, and a little training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import engine.hf
from support.family import TERNARY, write_family

TOKENS = torch.tensor([[5, 250, 17, 88, 131, 7, 19, 200], [9, 9, 40, 77, 250, 3, 1, 60]])


def trainable(path: Path, **options: Any) -> Any:
    """The model in `path`, dense or not."""
    return engine.hf.BitSkipForCausalLM.from_pretrained(path, **options).train()


def gradients(model: engine.hf.BitSkipForCausalLM) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    model(TOKENS, labels=TOKENS).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("variant", [*TERNARY, "dense"])
def test_gradients_reach_every_weight_up_to_the_exit(variant: str, tmp_path: Path) -> None:
    path = write_family(tmp_path / "m", variant)
    model = trainable(path)
    for exit_layer in (4, 2):
        model.set_exit_layer(exit_layer)
        for name, gradient in gradients(model).items():
            past = any(f".layers.{layer}." in name for layer in range(exit_layer, 4))
            assert (gradient is None or not gradient.any()) if past else gradient is not None, name
            if gradient is not None and not past:
                assert gradient.isfinite().all() and gradient.any(), name


def test_checkpointing_of_activations_gives_the_same_gradients(tmp_path: Path) -> None:
    path = write_family(tmp_path / "m", "v3")
    plain, saving = trainable(path), trainable(path)
    saving.activation_checkpointing_enable()
    for exit_layer in (4, 2):
        plain.set_exit_layer(exit_layer)
        saving.set_exit_layer(exit_layer)
        expected = gradients(plain)
        for name, gradient in gradients(saving).items():
            if expected[name] is not None:
                torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_steps_of_training_lower_the_loss(dtype: torch.dtype, tmp_path: Path) -> None:
    model = trainable(write_family(tmp_path / "m", "v2"), dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(TOKENS, labels=TOKENS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=dtype)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model.eval()(TOKENS).logits)


def begun(config: engine.hf.BitSkipConfig) -> Any:
    return AutoModelForCausalLM.from_config(config)


def test_a_model_can_be_begun_from_nothing() -> None:
    """From a configuration, weights are drawn: that is what is asked for there."""
    config = engine.hf.BitSkipV2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = begun(config)
    assert type(model).__name__ == "BitSkipV2ForCausalLM"
    weight = model.model.layers[1].mlp.up_proj.weight
    assert 0.01 < weight.std().item() < 0.03
    loss = model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()
    assert weight.grad is not None and weight.grad.any()

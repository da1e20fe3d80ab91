"""Codes, scales and logits through transformers, through `bitskip export`, and back: to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import engine.hf
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.names import LINEARS
from engine.checkpoint.packing import pack_checkpoint
from server.cli import app
from support.family import TERNARY, write_family
from support.reference_logits import reference_logits
from support.sequences import assert_same_bits

TOKENS = [5, 250, 17, 17, 88, 131, 299, 4, 60, 201, 33, 270]
DEMO = Path(engine.hf.__file__).parents[1] / "demo"


def export(model: Path, out: Path, *options: str) -> Path:
    result = CliRunner().invoke(app, ["export", str(model), str(out), "--format", "hf", *options])
    assert result.exit_code == 0, result.output
    return out


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


def logits(model: engine.hf.BitSkipForCausalLM) -> NDArray[np.float32]:
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def assert_same_codes(one: Path, two: Path) -> None:
    with load_checkpoint(one) as first, load_checkpoint(two) as second:
        assert first.config.variant == second.config.variant
        for layer in range(first.config.num_layers):
            for linear in LINEARS:
                here, there = first.linear(layer, linear), second.linear(layer, linear)
                assert np.array_equal(here.trits, there.trits)
                assert here.scale.tobytes() == there.scale.tobytes()


def assert_same_model(one: Path, two: Path) -> None:
    assert_same_codes(one, two)
    assert_same_bits(reference_logits(one, TOKENS), reference_logits(two, TOKENS))
    assert_same_bits(logits(load(one)), logits(load(two)))


@pytest.mark.parametrize("variant", TERNARY)
@pytest.mark.parametrize("weights", ["latent", "ternary"])
def test_saving_what_was_loaded(variant: str, weights: str, tmp_path: Path) -> None:
    source = write_family(tmp_path / "source", variant, weights=weights)
    model = load(source)
    model.set_exit_layer(2)
    model.save_pretrained(tmp_path / "saved")
    assert_same_model(source, tmp_path / "saved")
    with load_checkpoint(tmp_path / "saved") as saved:
        assert saved.config.weights == weights
        assert saved.config.num_layers == 4


@pytest.mark.parametrize("variant", TERNARY)
def test_packed_exported_loaded_saved_and_packed_again(variant: str, tmp_path: Path) -> None:
    pack_checkpoint(write_family(tmp_path / "source", variant), tmp_path / "packed")
    exported = export(tmp_path / "packed", tmp_path / "exported")
    assert_same_model(tmp_path / "packed", exported)
    load(exported).save_pretrained(tmp_path / "saved")
    load(tmp_path / "packed").save_pretrained(tmp_path / "unpacked")
    weights = (tmp_path / "packed" / "model.safetensors").read_bytes()
    for name in ("exported", "saved", "unpacked"):
        assert_same_model(tmp_path / "packed", tmp_path / name)
        pack_checkpoint(tmp_path / name, tmp_path / f"{name}-packed")
        assert (tmp_path / f"{name}-packed" / "model.safetensors").read_bytes() == weights
    for name in ("packed", "exported", "saved", "unpacked"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        expected = "bitskip_packed" if name == "packed" else f"bitskip_{variant[:2]}_earlyexit"
        assert (config["model_type"], config["weights"]) == (expected, "ternary")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_latent_weights_keep_their_dtype(dtype: str, num_shards: int, tmp_path: Path) -> None:
    """Wider or narrower ones would have another mean, and so other codes and scales."""
    source = write_family(
        tmp_path / "source",
        dtype=dtype,
        num_shards=num_shards,
        rename=lambda name: "_orig_mod." + name.replace(".mlp.", ".feed_forward."),
        tie_word_embeddings=True,
    )
    exported = export(source, tmp_path / "exported")
    load(source).save_pretrained(tmp_path / "saved")
    for path in (exported, tmp_path / "saved"):
        assert_same_model(source, path)
        with load_checkpoint(path) as checkpoint:
            assert checkpoint.config.weights == "latent"
            assert checkpoint.config.tie_word_embeddings
            assert checkpoint.stored_dtype("layers.3.mlp.up_proj.weight") == dtype
            assert checkpoint.stored_dtype("embed_tokens.weight") == "fp32"


def test_the_demo(tmp_path: Path) -> None:
    exported = export(DEMO, tmp_path / "exported")
    assert_same_model(DEMO, exported)
    pack_checkpoint(exported, tmp_path / "packed")
    assert_same_codes(DEMO, tmp_path / "packed")


def test_a_trained_model_is_saved_as_latent(tmp_path: Path) -> None:
    model = load(write_family(tmp_path / "source", weights="ternary"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 0.001
    model.save_pretrained(tmp_path / "saved")
    with load_checkpoint(tmp_path / "saved") as saved:
        assert saved.config.weights == "latent"
    assert_same_bits(logits(model), logits(load(tmp_path / "saved")))


def test_sharded_saving(tmp_path: Path) -> None:
    source = write_family(tmp_path / "source", "v3")
    load(source).save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    assert_same_model(source, tmp_path / "saved")

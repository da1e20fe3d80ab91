from __future__ import annotations

import json
import logging
import mmap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.names import (
    EMBEDDING,
    FINAL_NORM,
    LINEARS,
    LM_HEAD,
    expected_shapes,
    is_linear,
    linear_name,
    published_name,
)
from engine.checkpoint.ternary import ternarise
from engine.config import ModelConfig
from engine.errors import CheckpointError
from support.checkpoints import (
    Dtype,
    RawTensor,
    random_tensors,
    raw_tensor,
    read_safetensors,
    stored_values,
    tiny_config,
    write_checkpoint,
    write_safetensors,
)

DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "bf16")


def lies_in_a_map(array: np.ndarray) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tensor_comes_back(tmp_path: Path, dtype: Dtype, num_shards: int) -> None:
    config = tiny_config()
    path = write_checkpoint(tmp_path / "m", config, 4, dtype, num_shards=num_shards)
    source = {n: stored_values(v, dtype) for n, v in random_tensors(config, 4).items()}
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.config == config
        assert checkpoint.path == path and not checkpoint.is_packed
        for name, values in source.items():
            found = checkpoint.tensor(name)
            assert found.dtype == values.dtype
            assert np.array_equal(found, values)
            assert checkpoint.stored_dtype(name) == dtype
        for layer in range(config.num_layers):
            for linear in LINEARS:
                weight = checkpoint.linear(layer, linear)
                values = source[linear_name(layer, linear)]
                trits, scale = ternarise(values, dtype=dtype)
                assert np.array_equal(weight.trits, trits)
                assert weight.scale == scale


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_linears_are_tensors(tmp_path: Path, dtype: Dtype, num_shards: int) -> None:
    config = tiny_config(weights="dense")
    path = write_checkpoint(tmp_path / "m", config, 4, dtype, num_shards=num_shards)
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.config == config
        for name, values in random_tensors(config, 4).items():
            assert np.array_equal(checkpoint.tensor(name), stored_values(values, dtype))
            assert checkpoint.stored_dtype(name) == dtype
        with pytest.raises(KeyError, match="is dense"):
            checkpoint.linear(0, "q_proj")


@pytest.mark.parametrize(("dtype", "mapped"), [("fp32", True), ("fp16", True), ("bf16", False)])
def test_tensors_are_mapped_where_the_dtype_allows(
    tmp_path: Path, dtype: Dtype, mapped: bool
) -> None:
    path = write_checkpoint(tmp_path / "m", tiny_config(), dtype=dtype)
    with load_checkpoint(path) as checkpoint:
        embedding = checkpoint.tensor(EMBEDDING)
    assert lies_in_a_map(embedding) is mapped
    assert embedding.flags.aligned
    if mapped:
        assert not embedding.flags.writeable


def test_misaligned_tensors_are_copied_to_aligned_ones(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", tiny_config())
    file = path / "model.safetensors"
    tensors, _ = read_safetensors(file)
    # An ignored tensor of one byte shifts everything behind it.
    odd = {"layers.0.rotary_emb.inv_freq": RawTensor("U8", (1,), b"\0")}
    write_safetensors(file, {**odd, **tensors})
    with load_checkpoint(path) as checkpoint:
        embedding = checkpoint.tensor(EMBEDDING)
        assert embedding.flags.aligned
        assert np.array_equal(embedding, random_tensors(tiny_config())[EMBEDDING])
        checkpoint.linear(0, "q_proj")


def alias(name: str) -> str:
    name = name.replace(".mlp.", ".feed_forward.").replace("input_layernorm", "attn_norm")
    return "_orig_mod.model." + name.replace("post_attention_layernorm", "ffn_norm")


@pytest.mark.parametrize("rename", [alias, lambda name: name, published_name])
def test_other_spellings_load(tmp_path: Path, rename) -> None:
    path = write_checkpoint(tmp_path / "m", tiny_config(), rename=rename)
    with load_checkpoint(path) as checkpoint:
        for name, values in random_tensors(tiny_config()).items():
            assert np.array_equal(checkpoint.tensor(name), values)


def test_scales_and_rotary_buffers_beside_latent_weights_are_ignored(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", tiny_config())
    with load_checkpoint(path) as checkpoint:
        plain = checkpoint.linear(1, "up_proj")
    extra = {
        "model.layers.1.mlp.up_proj.weight_scale": np.array([123.0], dtype=np.float32),
        "model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4, dtype=np.float32),
    }
    tensors, _ = read_safetensors(path / "model.safetensors")
    tensors |= {name: raw_tensor(values, "fp32") for name, values in extra.items()}
    write_safetensors(path / "model.safetensors", tensors)
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.linear(1, "up_proj").scale == plain.scale


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("weights", ["latent", "dense"])
def test_the_file_decides_whether_the_head_is_tied(
    tmp_path: Path, claimed: bool, present: bool, weights: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tie_word_embeddings=not present, weights=weights)
    path = write_checkpoint(tmp_path / "m", config)
    claim = replace(config, tie_word_embeddings=claimed)
    (path / "config.json").write_text(json.dumps(claim.to_dict()))
    with caplog.at_level(logging.WARNING), load_checkpoint(path) as checkpoint:
        assert checkpoint.config.tie_word_embeddings is not present
        head, embedding = checkpoint.tensor(LM_HEAD), checkpoint.tensor(EMBEDDING)
    assert np.array_equal(head, embedding) is not present
    assert ("tie_word_embeddings" in caplog.text) is (claimed is present)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ternary_exports_keep_their_scales(tmp_path: Path, dtype: Dtype) -> None:
    latent, declared = tiny_config(), tiny_config(weights="ternary")
    first = write_checkpoint(tmp_path / "latent", latent, dtype=dtype)
    second = write_checkpoint(tmp_path / "ternary", declared, dtype=dtype)
    with load_checkpoint(first) as one, load_checkpoint(second) as two:
        assert two.config.weights == "ternary"
        for linear in LINEARS:
            assert one.linear(1, linear).scale == two.linear(1, linear).scale
            assert np.array_equal(one.linear(1, linear).trits, two.linear(1, linear).trits)


def test_a_declared_ternary_tensor_must_be_one(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", tiny_config())
    config = tiny_config(weights="ternary")
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    with (
        load_checkpoint(path) as checkpoint,
        pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.gate_proj\.weight.*ternary"),
    ):
        checkpoint.linear(2, "gate_proj")


def with_stored_scale(path: Path, factor: float, stored: float) -> ModelConfig:
    """A ternary export whose q_proj of layer 0 was multiplied, with a scale stored beside it."""
    config = tiny_config(weights="ternary")
    write_checkpoint(path, config)
    tensors, _ = read_safetensors(path / "model.safetensors")
    name = published_name(linear_name(0, "q_proj"))
    values = np.frombuffer(tensors[name].data, dtype=np.float32).reshape(tensors[name].shape)
    tensors[name] = raw_tensor(values * np.float32(factor / np.abs(values).max()), "fp32")
    tensors[name + "_scale"] = raw_tensor(np.array(stored, dtype=np.float32), "bf16")
    write_safetensors(path / "model.safetensors", tensors)
    return config


def test_a_scale_beside_ternary_weights_may_agree(tmp_path: Path) -> None:
    with_stored_scale(tmp_path / "m", 0.0213, 0.0213)
    with load_checkpoint(tmp_path / "m") as checkpoint:
        assert checkpoint.linear(0, "q_proj").scale == pytest.approx(0.0213, rel=1e-6)


@pytest.mark.parametrize("stored", [0.0213, 1 / 0.0213, np.nan])
def test_a_scale_beside_unit_trits_is_not_ignored(tmp_path: Path, stored: float) -> None:
    with_stored_scale(tmp_path / "m", 1.0, 1.0 if np.isnan(stored) else stored)
    if np.isnan(stored):
        tensors, _ = read_safetensors(tmp_path / "m" / "model.safetensors")
        name = published_name(linear_name(0, "q_proj")) + "_scale"
        tensors[name] = RawTensor("F32", (), np.float32(np.nan).tobytes())
        write_safetensors(tmp_path / "m" / "model.safetensors", tensors)
    with (
        load_checkpoint(tmp_path / "m") as checkpoint,
        pytest.raises(CheckpointError, match=r"q_proj\.weight: holds only 0 and ±1.*weight_scale"),
    ):
        checkpoint.linear(0, "q_proj")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [EMBEDDING, FINAL_NORM, linear_name(1, "o_proj")])
def test_values_that_are_not_finite_name_their_tensor(
    tmp_path: Path, dtype: Dtype, value: float, name: str
) -> None:
    path = write_checkpoint(tmp_path / "m", tiny_config(), dtype=dtype)
    file = path / "model.safetensors"
    tensors, _ = read_safetensors(file)
    old = tensors[published_name(name)]
    poison = {
        "fp32": np.float32(value).tobytes(),
        "fp16": np.float16(value).tobytes(),
        "bf16": (np.float32(value).view(np.uint32) >> 16).astype("<u2").tobytes(),
    }[dtype]
    data = old.data[: -len(poison)] + poison
    write_safetensors(file, {**tensors, published_name(name): old._replace(data=data)})
    with load_checkpoint(path) as checkpoint:
        with pytest.raises(CheckpointError, match=f"{name}: holds NaN or infinite"):
            checkpoint.linear(1, "o_proj") if is_linear(name) else checkpoint.tensor(name)
        for other in expected_shapes(tiny_config()):
            if other != name:
                checkpoint.tensor(other)


def test_unknown_names_and_closed_checkpoints(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "m", tiny_config()))
    with pytest.raises(KeyError):
        checkpoint.linear(3, "q_proj")
    with pytest.raises(KeyError):
        checkpoint.tensor("model.norm.weight")
    embedding = checkpoint.tensor(EMBEDDING)
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        checkpoint.tensor(EMBEDDING)
    assert np.all(np.isfinite(embedding))

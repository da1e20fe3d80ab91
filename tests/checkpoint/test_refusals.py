"""Checkpoints that must not load: each message names the culprit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint.loader import load_checkpoint
from engine.errors import CheckpointError
from support.checkpoints import (
    RawTensor,
    raw_tensor,
    read_safetensors,
    tiny_config,
    write_checkpoint,
    write_safetensors,
)

WEIGHTS = "model.safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m", tiny_config())


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    return str(caught.value)


def test_a_missing_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such directory"


def test_a_file_in_place_of_the_directory(path: Path) -> None:
    message = refusal(path / WEIGHTS)
    assert str(path / WEIGHTS) in message and "directory" in message


def test_an_empty_directory(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert WEIGHTS in message and str(tmp_path) in message


def test_a_missing_config(path: Path) -> None:
    (path / "config.json").unlink()
    assert str(path / "config.json") in refusal(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_unopened(path: Path, name: str) -> None:
    (path / WEIGHTS).unlink()
    (path / name).write_bytes(b"not even a pickle")
    message = refusal(path)
    assert name in message and "pickle" in message


def test_pickles_beside_safetensors_do_no_harm(path: Path) -> None:
    (path / "pytorch_model.bin").write_bytes(b"")
    load_checkpoint(path).close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:50],
        lambda content: content[:5],
        lambda content: b"",
        lambda content: b"\xff" * 200,
        lambda content: content[:8] + b"!" + content[9:],
    ],
    ids=["cut", "longer", "cut header", "cut length", "empty", "garbage", "bad JSON"],
)
def test_damaged_files(path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = path / WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    message = refusal(path)
    assert str(file) in message and "safetensors" in message


def test_a_name_twice_in_one_header(path: Path) -> None:
    file = path / WEIGHTS
    entry = b'"norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry + b"," + entry + b"}"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    message = refusal(path)
    assert str(file) in message and "norm.weight twice" in message


def test_every_offender_is_listed_at_once(path: Path) -> None:
    tensors, _ = read_safetensors(path / WEIGHTS)
    k_proj = "model.layers.1.self_attn.k_proj.weight"
    del tensors["model.layers.2.mlp.up_proj.weight"]
    del tensors["model.norm.weight"]
    norm = tensors.pop("model.layers.0.input_layernorm.weight")
    tensors["model.layers.0.first_norm.weight"] = norm
    tensors["layers.1.self_attn.q_proj.weight"] = tensors["model.layers.1.self_attn.q_proj.weight"]
    tensors["model.embed_tokens.weight"] = raw_tensor(np.zeros((60, 48), np.float32), "fp16")
    tensors[k_proj] = RawTensor("I8", (16, 48), bytes(16 * 48))
    write_safetensors(path / WEIGHTS, tensors)
    lines = refusal(path).splitlines()
    assert lines[0] == f"{path}: 7 tensors at odds with config.json:"
    floats = "F32 or F16 or BF16"
    assert sorted(line.strip() for line in lines[1:]) == sorted(
        [
            f"layers.2.mlp.up_proj.weight: missing, expected {floats} [140, 48]",
            f"norm.weight: missing, expected {floats} [48]",
            f"layers.0.input_layernorm.weight: missing, expected {floats} [48]",
            "model.layers.0.first_norm.weight: found F32 [48], expected no such tensor",
            "layers.1.self_attn.q_proj.weight: found 2 times, as "
            "model.layers.1.self_attn.q_proj.weight in model.safetensors and "
            "layers.1.self_attn.q_proj.weight in model.safetensors, expected one",
            f"model.embed_tokens.weight: found F16 [60, 48], expected {floats} [61, 48]",
            f"{k_proj}: found I8 [16, 48], expected {floats} [16, 48]",
        ]
    )


def test_a_transposed_linear_is_not_accepted(path: Path) -> None:
    tensors, _ = read_safetensors(path / WEIGHTS)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name]._replace(shape=tensors[name].shape[::-1])
    write_safetensors(path / WEIGHTS, tensors)
    message = refusal(path)
    assert name in message and "found F32 [140, 48]" in message and "[48, 140]" in message


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "s", tiny_config(), num_shards=3)


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in refusal(sharded)


def test_a_truncated_shard(sharded: Path) -> None:
    shard = sharded / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-2])
    assert str(shard) in refusal(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    first, second = (sharded / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    tensors, _ = read_safetensors(first)
    others, _ = read_safetensors(second)
    name = next(iter(tensors))
    write_safetensors(second, {**others, name: tensors[name]})
    message = refusal(sharded)
    assert name in message and first.name in message and second.name in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSON"),
        ("[]", "weight_map"),
        ("{}", "weight_map"),
        (json.dumps({"weight_map": {"a": "../other.safetensors"}}), "../other.safetensors"),
        (json.dumps({"weight_map": {"a": "/etc/passwd"}}), "/etc/passwd"),
        (json.dumps({"weight_map": {"a": 3}}), "3"),
        (json.dumps({"weight_map": {"a": {}}}), "{}"),
    ],
)
def test_an_index_that_cannot_be_used(sharded: Path, content: str, reason: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(content)
    message = refusal(sharded)
    assert str(index) in message and reason in message

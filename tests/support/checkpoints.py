"""Random checkpoints for tests: small, seeded, in every dtype and spelling that files come in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.names import (
    EMBEDDING,
    LM_HEAD,
    expected_shapes,
    is_linear,
    published_name,
)
from engine.checkpoint.ternary import ternarise
from engine.config import ModelConfig

Dtype = Literal["fp32", "fp16", "bf16"]

_TAGS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


class RawTensor(NamedTuple):
    """A tensor as a safetensors file has it: its dtype in the file's spelling, shape and bytes."""

    tag: str
    shape: tuple[int, ...]
    data: bytes


def tiny_config(**changes: object) -> ModelConfig:
    """Three layers, grouped heads, and widths that fill no block of 128 inputs."""
    base = ModelConfig(
        vocab_size=61,
        hidden_size=48,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=140,
        max_position_embeddings=64,
        eos_token_ids=(0,),
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def random_tensors(
    config: ModelConfig,
    seed: int = 0,
    agreement_after: int | None = None,
    damping: float = 1.0,
) -> dict[str, NDArray[np.float32]]:
    """Canonical name → float32 values of a random model.

    Linears have a standard deviation of 1/√inputs, so that residuals keep their size; the head
    has 3/√hidden, which makes logits of standard deviation 3: greedy choices have clear winners
    that differ from token to token, and sampling at temperature 1 still has a choice. With
    `agreement_after=k` what layers ≥ k add to the residual is multiplied by `damping`, so that
    exits from k on agree with full depth the more often the smaller it is.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in expected_shapes(config).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if is_linear(name):
            values /= np.float32(np.sqrt(shape[1]))
            if agreement_after is not None and _adds_to_residual(name, agreement_after):
                values *= np.float32(damping)
        elif name == LM_HEAD:
            values *= np.float32(3 / np.sqrt(shape[1]))
        elif name != EMBEDDING:
            values = 1 + np.float32(0.1) * values
        tensors[name] = values
    return tensors


def write_checkpoint(
    path: Path,
    config: ModelConfig,
    seed: int = 0,
    dtype: Dtype = "fp32",
    agreement_after: int | None = None,
    damping: float = 1.0,
    *,
    num_shards: int = 1,
    rename: Callable[[str], str] = published_name,
) -> Path:
    """Write a random Hugging Face checkpoint into the directory `path`, and return it.

    The values are those of `random_tensors`; linears of a config with `weights="ternary"` hold
    only −s, 0 and +s. `rename` spells the canonical names; a tied head is left out.
    """
    tensors = {}
    for name, values in random_tensors(config, seed, agreement_after, damping).items():
        if config.weights == "ternary" and is_linear(name):
            stored = stored_values(values, dtype)
            trits, scale = ternarise(stored, dtype=dtype)
            values = trits * scale
        tensors[rename(name)] = raw_tensor(values, dtype)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    if num_shards == 1:
        write_safetensors(path / "model.safetensors", tensors)
        return path
    places = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        names = list(tensors)[shard::num_shards]
        write_safetensors(path / file, {name: tensors[name] for name in names})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return path


def raw_tensor(values: NDArray[np.float32], dtype: Dtype) -> RawTensor:
    """Values rounded to a dtype, ready to be written."""
    if dtype == "bf16":
        data = bf16_bits(values).astype("<u2").tobytes()
    else:
        data = values.astype("<f2" if dtype == "fp16" else "<f4").tobytes()
    return RawTensor(_TAGS[dtype], values.shape, data)


def stored_values(values: NDArray[np.float32], dtype: Dtype) -> NDArray[np.floating]:
    """Values as a loader must give them back: rounded to the dtype, bfloat16 as float32."""
    if dtype == "bf16":
        return (bf16_bits(values).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float16 if dtype == "fp16" else np.float32)


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Finite float32 values rounded to bfloat16, ties to even, as their bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + rounding) >> np.uint32(16)).astype(np.uint16)


def write_safetensors(
    file: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file by hand: the library's numpy side knows no bfloat16."""
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor.data)
        header[name] = {
            "dtype": tensor.tag,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(tensor.data for tensor in tensors.values())
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def read_safetensors(file: Path) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """The tensors and the metadata of a sound safetensors file, for tests that change some."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        data = content[start + begin : start + end]
        tensors[name] = RawTensor(info["dtype"], tuple(info["shape"]), data)
    return tensors, metadata


def _adds_to_residual(name: str, first_layer: int) -> bool:
    layer = int(name.split(".")[1])
    return layer >= first_layer and name.endswith(("o_proj.weight", "down_proj.weight"))

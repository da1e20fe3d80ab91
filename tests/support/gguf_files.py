"""Small models that fit GGUF's blocks, and GGUF files read back with llama.cpp's own reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.gguf_export import export_gguf
from engine.config import ModelConfig
from support.checkpoints import tiny_config


def block_config(**changes: Any) -> ModelConfig:
    """Two layers whose every linear has a multiple of 256 inputs; q is wider than the model."""
    base = tiny_config(
        vocab_size=320,
        hidden_size=256,
        num_layers=2,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=768,
        eos_token_ids=(319,),
    )
    return replace(base, **changes)


def export(source: Path, **options: Any) -> GGUFFile:
    """Export `source` to a file beside it, and read that."""
    out = source.with_name(f"{source.name}.gguf")
    export_gguf(source, out, **options)
    return GGUFFile(out)


class GGUFFile:
    """A file's metadata and tensors, under GGUF's names."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.path = path
        self.metadata: dict[str, Any] = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        }
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.names = set(self._tensors)

    def kind(self, name: str) -> gguf.GGMLQuantizationType:
        """A tensor's type."""
        return self._tensors[name].tensor_type

    def raw(self, name: str) -> NDArray[Any]:
        """A tensor as it is stored: blocks as bytes, one row per output."""
        return self._tensors[name].data

    def values(self, name: str) -> NDArray[np.float32]:
        """A tensor as gguf's own decoder reads it."""
        return gguf.dequantize(self.raw(name), self.kind(name))

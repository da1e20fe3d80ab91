"""Small checkpoints of every variant of the family, with the files that transformers looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import ModelConfig
from support.checkpoints import tiny_config, write_checkpoint
from support.tokenizers import write_tokenizer

VARIANTS: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2": {"activation_bits": 4, "hadamard": "before"},
    "v3": {"hadamard": "before"},
    "v2-quantise-first": {"activation_bits": 4, "hadamard": "after"},
    "v3-quantise-first": {"hadamard": "after"},
}
"""Fields of `ModelConfig` by the variant's name; widths are powers of two for all of them."""


def family_config(variant: str = "v1", **changes: Any) -> ModelConfig:
    """A model of four layers and 300 tokens; `dense` is a variant, too."""
    fields = {"weights": "dense"} if variant == "dense" else VARIANTS[variant]
    base = {
        "vocab_size": 300,
        "hidden_size": 64,
        "num_layers": 4,
        "num_heads": 8,
        "num_kv_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "eos_token_ids": (299,),
    }
    return tiny_config(**base | fields | changes)


def write_family(path: Path, variant: str = "v1", seed: int = 0, **changes: Any) -> Path:
    """A random checkpoint of `family_config` with a tokenizer, in the new directory `path`.

    `dtype`, `num_shards` and `rename` are `write_checkpoint`'s.
    """
    names = ("dtype", "num_shards", "rename")
    options = {name: changes.pop(name) for name in names if name in changes}
    config = family_config(variant, **changes)
    write_checkpoint(path, config, seed, **options)
    return write_tokenizer(path, config.vocab_size)

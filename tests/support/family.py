"""Small checkpoints of every variant of the family, with the files that transformers looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import ModelConfig
from support.checkpoints import write_checkpoint
from support.tokenizers import write_tokenizer
from support.variants import VARIANTS, variant_config

TERNARY = tuple(variant for variant in VARIANTS if variant != "dense")


def family_config(variant: str = "v1", **changes: Any) -> ModelConfig:
    """A model of four layers and 300 tokens."""
    base = {
        "vocab_size": 300,
        "num_layers": 4,
        "max_position_embeddings": 128,
        "eos_token_ids": (299,),
    }
    return variant_config(variant, **base | changes)


def write_family(path: Path, variant: str = "v1", seed: int = 0, **changes: Any) -> Path:
    """A random checkpoint of `family_config` with a tokenizer, in the new directory `path`.

    `dtype`, `num_shards` and `rename` are `write_checkpoint`'s.
    """
    names = ("dtype", "num_shards", "rename")
    options = {name: changes.pop(name) for name in names if name in changes}
    config = family_config(variant, **changes)
    write_checkpoint(path, config, seed, **options)
    return write_tokenizer(path, config.vocab_size)

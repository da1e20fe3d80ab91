"""The family: what tells its members apart, as fields of `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from engine.config import ModelConfig, RopeScaling
from support.checkpoints import tiny_config

VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "v1": {},
        "v1-4bit": {"activation_bits": 4},
        "v2": {"activation_bits": 4, "hadamard": "before"},
        "v2-quantise-first": {"activation_bits": 4, "hadamard": "after"},
        "v3": {"hadamard": "before"},
        "v3-quantise-first": {"hadamard": "after"},
        "dense": {"weights": "dense"},
    }
)
"""By `ModelConfig.variant`."""

POWERS_OF_TWO: Mapping[str, int] = MappingProxyType(
    {"hidden_size": 64, "num_heads": 8, "num_kv_heads": 2, "head_dim": 8, "intermediate_size": 128}
)
"""Widths that Hadamard transforms can have."""

LLAMA3_ROPE = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=100
)
"""Of Llama 3's shape, but short: heads of 8 with a base of 10,000 meet every branch of it."""


def variant_config(variant: str, **changes: Any) -> ModelConfig:
    """`support.checkpoints.tiny_config` of a variant."""
    return tiny_config(**{**POWERS_OF_TWO, **VARIANTS[variant], **changes})

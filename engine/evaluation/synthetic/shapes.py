"""Shapes of synthetic models, by name."""

from __future__ import annotations

import re

from engine.config import ModelConfig
from engine.errors import ConfigError

_HEAD_DIM = 64
_QUERIES_PER_KEY = 4
_FREE_SHAPE = re.compile(r"([0-9]{1,3})x([0-9]{1,5})")


def parse_shape(text: str) -> ModelConfig:
    """The model that a shape stands for: `v1`, `tiny`, or LAYERSxHIDDEN, as in 12x1024.

    `v1` is BitSkip v1 at its full size (MODEL.md, Shape), and LAYERSxHIDDEN has its
    proportions and vocabulary. The last id is EOS. Raises `ConfigError` for anything else.
    """
    if text == "v1":
        return _proportioned(24, 2048)
    if text == "tiny":
        return _shape(8, 256, num_kv_heads=2, vocab_size=2048)
    match = _FREE_SHAPE.fullmatch(text)
    if match is None:
        raise ConfigError(f"shape {text!r} is not known: use v1, tiny, or LAYERSxHIDDEN")
    num_layers, hidden_size = int(match[1]), int(match[2])
    if num_layers < 2:
        raise ConfigError(f"shape {text!r}: drafting needs at least 2 layers")
    unit = _HEAD_DIM * _QUERIES_PER_KEY
    if not hidden_size or hidden_size % unit:
        raise ConfigError(f"shape {text!r}: the hidden size must be a multiple of {unit}")
    return _proportioned(num_layers, hidden_size)


def _proportioned(num_layers: int, hidden_size: int) -> ModelConfig:
    num_kv_heads = hidden_size // _HEAD_DIM // _QUERIES_PER_KEY
    return _shape(num_layers, hidden_size, num_kv_heads=num_kv_heads, vocab_size=50_257)


def _shape(num_layers: int, hidden_size: int, *, num_kv_heads: int, vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // _HEAD_DIM,
        num_kv_heads=num_kv_heads,
        head_dim=_HEAD_DIM,
        intermediate_size=2 * hidden_size,
        weights="ternary",
        eos_token_ids=(vocab_size - 1,),
    )

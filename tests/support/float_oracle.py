"""MODEL.md's formulas in plain numpy and float64: whole sequences, no cache, no batching."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from support.memory_checkpoint import MemoryCheckpoint

Vector = NDArray[np.float64]


def _linear(checkpoint: MemoryCheckpoint, layer: int, name: str, x: Vector) -> Vector:
    weight = checkpoint.linear(layer, name)
    peak = max(np.abs(x).max(), 1e-6)
    q = np.clip(np.rint(x * 127 / peak), -127, 127).astype(np.int64)
    return (weight.trits.astype(np.int64) @ q) * (peak / 127 * float(weight.scale))


def _norm(checkpoint: MemoryCheckpoint, name: str, x: Vector) -> Vector:
    eps = checkpoint.config.rms_norm_eps
    return x / math.sqrt((x * x).mean() + eps) * checkpoint.tensor(name)


def _rotated(checkpoint: MemoryCheckpoint, head: Vector, position: int) -> Vector:
    half = len(head) // 2
    out = np.empty_like(head)
    for i in range(half):
        angle = position * checkpoint.config.rope_theta ** (-2 * i / len(head))
        cos, sin = math.cos(angle), math.sin(angle)
        out[i] = head[i] * cos - head[i + half] * sin
        out[i + half] = head[i + half] * cos + head[i] * sin
    return out


def oracle_logits(
    checkpoint: MemoryCheckpoint, tokens: Sequence[int], depth: int
) -> NDArray[np.float64]:
    """T × V logits of a sequence at exit `depth`."""
    config = checkpoint.config
    size, group = config.head_dim, config.num_heads // config.num_kv_heads
    stream = [
        checkpoint.tensor("embed_tokens.weight")[token].astype(np.float64) for token in tokens
    ]
    for layer in range(depth):
        prefix = f"layers.{layer}."
        queries, keys, values = [], [], []
        for position, hidden in enumerate(stream):
            normed = _norm(checkpoint, prefix + "input_layernorm.weight", hidden)
            q, k, v = (
                _linear(checkpoint, layer, name, normed).reshape(-1, size)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            queries.append([_rotated(checkpoint, head, position) for head in q])
            keys.append([_rotated(checkpoint, head, position) for head in k])
            values.append(v)
        for position, hidden in enumerate(stream):
            attended = []
            for head in range(config.num_heads):
                kv_head = head // group
                scores = np.array(
                    [
                        queries[position][head] @ keys[other][kv_head] / math.sqrt(size)
                        for other in range(position + 1)
                    ]
                )
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                attended.append(sum(w * values[j][kv_head] for j, w in enumerate(weights)))
            hidden = hidden + _linear(checkpoint, layer, "o_proj", np.concatenate(attended))
            normed = _norm(checkpoint, prefix + "post_attention_layernorm.weight", hidden)
            gate = _linear(checkpoint, layer, "gate_proj", normed)
            up = _linear(checkpoint, layer, "up_proj", normed)
            activated = gate / (1 + np.exp(-gate)) * up
            stream[position] = hidden + _linear(checkpoint, layer, "down_proj", activated)
    if config.exit_norm or depth == config.num_layers:
        stream = [_norm(checkpoint, "norm.weight", hidden) for hidden in stream]
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return np.stack([checkpoint.tensor(head) @ hidden for hidden in stream])


Logits = Callable[[list[int]], NDArray[np.floating]]
"""Tokens → T × V logits."""


def assert_same_model(
    actual: Logits, expected: Logits, vocab_size: int, *, roughly: float = 0.25
) -> None:
    """Two implementations agree on random sequences, up to float32 rounding.

    Where rounding moves an activation over a quantiser's edge, correct implementations take
    neighbouring integers; from there on that sequence's logits differ by far more than float32
    rounding, though far less than a wrong formula would make them. That happens to about one
    row in fifty. So most short sequences must agree within 2e-5, and a long one `roughly`, in
    standard deviations of its logits.
    """
    rng = np.random.default_rng(17)
    errors = []
    for _ in range(12):
        tokens = rng.integers(0, vocab_size, 8).tolist()
        errors.append(np.abs(actual(tokens) - expected(tokens)).max())
    assert np.median(errors) < 2e-5, errors
    tokens = rng.integers(0, vocab_size, 40).tolist()
    exact = expected(tokens)
    distance = np.abs(actual(tokens) - exact).max(axis=1)
    assert distance.max() < roughly * exact.std(), distance / exact.std()

"""The native backend against the reference: the same model, up to what its formats round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends.protocol import Backend, Sweep
from engine.build import demo_model_path
from engine.checkpoint.loader import load_checkpoint
from engine.config import ModelConfig
from engine.evaluation.perplexity import score_exits
from engine.tokenizer import Tokenizer
from support.backend_variants import NATIVE, REFERENCE, Precision, needs_native
from support.float_oracle import assert_same_model
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, sequence_logits, token_rows
from support.variants import LLAMA3_ROPE, VARIANTS

pytestmark = needs_native

ALIKE = Precision("cpu", "fp32", "fp16", "fp32"), Precision("reference", "fp32", "fp16")
"""Both round K/V to float16, once, and nothing else: they differ in the order of sums alone."""


def random_config(seed: int) -> ModelConfig:
    """Odd sizes and every grouping of heads, among others."""
    rng = np.random.default_rng(seed)
    num_kv_heads = int(rng.integers(1, 5))
    head_dim = int(rng.choice([2, 6, 10, 16, 32, 64, 128]))
    return tiny_config(
        num_layers=int(rng.integers(1, 4)),
        vocab_size=int(rng.integers(50, 700)),
        hidden_size=int(rng.integers(17, 300)),
        intermediate_size=int(rng.integers(9, 600)),
        num_kv_heads=num_kv_heads,
        num_heads=num_kv_heads * int(rng.integers(1, 6)),
        head_dim=head_dim,
        exit_norm=bool(rng.integers(2)),
        tie_word_embeddings=bool(rng.integers(2)),
        rope_theta=float(rng.choice([500.0, 10_000.0, 1e6])),
        rms_norm_eps=float(rng.choice([1e-6, 1e-5, 1e-3])),
    )


CONFIGS: dict[str, ModelConfig] = {
    "plain": tiny_config(),
    "no exit norm": tiny_config(exit_norm=False),
    **{f"random {seed}": random_config(seed) for seed in range(10)},
}
FAMILY: dict[str, ModelConfig] = {
    **{name: tiny_config(**fields) for name, fields in VARIANTS.items() if name != "v1"},
    **{
        f"{name}, wide": tiny_config(
            num_layers=2,
            hidden_size=512,
            intermediate_size=1024,
            num_heads=4,
            num_kv_heads=1,
            head_dim=32,
            **VARIANTS[name],
        )
        for name in ("v2", "v3-quantise-first", "dense")
    },
    **{
        f"{name}, narrow": tiny_config(
            num_layers=2,
            hidden_size=8,
            intermediate_size=4,
            num_heads=2,
            num_kv_heads=1,
            head_dim=2,
            **VARIANTS[name],
        )
        for name in ("v2", "v3-quantise-first")
    },
    "dense, odd": replace(random_config(3), weights="dense", rope_scaling=LLAMA3_ROPE),
}
"""Narrow transforms fit a register, wide integers take three digits.

Dense models with large logits are left out: where K/V is fp16, embeddings moved by 1e-7 move the
reference's own logits by 4e-4, thirty times what they do where it is fp32.
"""


def logits_of(backend: Backend, depth: int) -> Any:
    return lambda tokens: sequence_logits(backend, tokens, depth)


@pytest.mark.parametrize("name", [*CONFIGS, *FAMILY])
def test_logits_are_the_references(name: str) -> None:
    checkpoint = MemoryCheckpoint({**CONFIGS, **FAMILY}[name], seed=7)
    native, reference = (precision.make(checkpoint, threads=2) for precision in ALIKE)
    # Of 4 bits a step is a seventh of the peak: a neighbouring integer moves logits that much more.
    roughly = 0.25 if checkpoint.config.activation_bits == 8 else 1.0
    for depth in sorted({1, checkpoint.config.num_layers}):
        assert_same_model(
            logits_of(native, depth),
            logits_of(reference, depth),
            checkpoint.config.vocab_size,
            roughly=roughly,
        )


@pytest.mark.parametrize(
    "change",
    [{"rope_theta": 9_000.0}, {"rms_norm_eps": 1e-1}, {"exit_norm": False}],
    ids=lambda change: next(iter(change)),
)
def test_the_tolerance_notices_a_wrong_formula(change: dict[str, Any]) -> None:
    checkpoint = MemoryCheckpoint(tiny_config(), seed=7)
    config = replace(checkpoint.config, **change)
    wrong = MemoryCheckpoint.of(config, checkpoint._linears, checkpoint._tensors)
    native, reference = ALIKE[0].make(wrong), ALIKE[1].make(checkpoint)
    with pytest.raises(AssertionError):
        assert_same_model(logits_of(native, 4), logits_of(reference, 4), config.vocab_size)


def residuals_of(backend: Backend, num_rows: int = 20) -> Any:
    tokens = np.random.default_rng(num_rows).integers(0, 90, num_rows).tolist()
    backend.allocate(2, 16, 0)
    depth = backend.config.num_layers
    return backend.sweep(Sweep(token_rows(tokens, 0, num_rows, depth), {0: [0, 1]}))


def head_weights(checkpoint: MemoryCheckpoint) -> np.ndarray:
    tied = checkpoint.config.tie_word_embeddings
    return checkpoint.tensor("embed_tokens.weight" if tied else "lm_head.weight")


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_round_weights_and_residuals_and_nothing_else(name: str) -> None:
    """bf16 and int8 against the float head on the same residuals, by bounds that always hold."""
    checkpoint = MemoryCheckpoint(CONFIGS[name], seed=3)
    exact, brief, packed = (
        Precision("cpu", head, "fp16").make(checkpoint) for head in ("fp32", "bf16", "int8")
    )
    residuals = residuals_of(exact)
    rows, depths = range(20), [checkpoint.config.num_layers] * 20
    weights = head_weights(checkpoint).astype(np.float64)
    wide = residuals.astype(np.float64)
    inverse = 1.0 / np.sqrt((wide**2).mean(axis=1, keepdims=True) + checkpoint.config.rms_norm_eps)
    x = wide * inverse * checkpoint.tensor("norm.weight")
    expected = x @ weights.T
    magnitude = np.abs(x) @ np.abs(weights).T

    def error(backend: Backend) -> np.ndarray:
        return np.abs(backend.head(residuals, rows, depths) - expected) - 1e-5 * magnitude

    assert (error(exact) <= 0).all()
    assert (error(brief) <= 2.0**-8 * magnitude).all()
    # Half a step of each weight times |x|, and half a step of each x times the rounded weight.
    hidden = checkpoint.config.hidden_size
    limit = min(8191, (2**31 - 1) // (127 * hidden))
    weight_step = np.abs(weights).max(axis=1) / 127
    x_step = np.abs(x).max(axis=1) / limit
    bound = 0.5 * np.abs(x).sum(axis=1)[:, None] * weight_step
    bound += 0.5 * x_step[:, None] * (np.abs(weights).sum(axis=1) + 0.5 * hidden * weight_step)
    assert (error(packed) <= bound).all()
    assert (error(packed) > 0).any(), "nothing was rounded"


def test_a_bfloat16_head_is_the_float_head_of_rounded_weights() -> None:
    checkpoint = MemoryCheckpoint(tiny_config(), seed=3)
    brief = Precision("cpu", "bf16", "fp16").make(checkpoint)
    weights = head_weights(checkpoint)
    bits = weights.view(np.uint32)
    weights[:] = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    residuals = residuals_of(brief)
    exact = Precision("cpu", "fp32", "fp16").make(checkpoint)
    assert_same_bits(
        brief.head(residuals, range(20), [6] * 20), exact.head(residuals, range(20), [6] * 20)
    )


def test_an_int8_cache_is_near_a_float16_one() -> None:
    checkpoint = MemoryCheckpoint(tiny_config(head_dim=32), seed=3)
    tokens = np.random.default_rng(2).integers(0, 96, 100).tolist()
    narrow, wide = (
        sequence_logits(Precision("cpu", "fp32", kv_dtype).make(checkpoint), tokens, 6)
        for kv_dtype in ("int8", "fp16")
    )
    assert 0 < np.abs(narrow - wide).mean() < 0.05 * wide.std()


def test_the_demo_model_loses_nothing_to_speed() -> None:
    """Held-out stories at three exits, in every precision: perplexity and the likeliest token.

    Over 4,140 tokens perplexity moved by at most 0.05 %, and 98.7 to 99.6 % of the likeliest
    tokens stayed; float16 K/V alone costs the reference backend 0.02 % and as many tokens.
    """
    checkpoint = load_checkpoint(demo_model_path())
    tokenizer = Tokenizer.from_directory(demo_model_path())
    stories = (Path(__file__).parents[1] / "data" / "heldout_stories.txt").read_text("utf-8")
    windows = [tokenizer.encode(story.strip()) for story in stories.split("<|endoftext|>")[:2]]
    exits = (4, 8, 12)
    expected = score_exits(REFERENCE[0].make(checkpoint), windows, exits)
    assert expected[12].num_tokens > 300
    best = likeliest(REFERENCE[0].make(checkpoint), windows[0])
    for precision in NATIVE:
        tallies = score_exits(precision.make(checkpoint, threads=2), windows, exits)
        for depth in exits:
            ratio = tallies[depth].perplexity / expected[depth].perplexity
            assert abs(ratio - 1.0) < 0.005, (str(precision), depth)
        agreed = likeliest(precision.make(checkpoint), windows[0]) == best
        assert agreed.mean() > 0.95, str(precision)


def likeliest(backend: Backend, tokens: list[int]) -> np.ndarray:
    return sequence_logits(backend, tokens, backend.config.num_layers).argmax(axis=1)

"""Every variant on every backend against transformers' Llama; the errors are printed as a table.

Dense models are compared with that class as it is, ternary ones with its linears replaced by
modules that are written from MODEL.md's formulas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from engine.checkpoint.names import EMBEDDING
from engine.config import ModelConfig
from support.backend_variants import EXACT, NATIVE, REFERENCE, Precision, needs_native
from support.llama_oracle import LlamaOracle
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.parity_table import ParityTable, measure, printed_table
from support.sequences import sequence_logits
from support.variants import LLAMA3_ROPE, VARIANTS


@dataclass(frozen=True, slots=True)
class Column:
    """A way to compute, and how far it may be from the oracle."""

    precision: Precision
    tolerance: float | None
    """Of rows that no quantiser's edge decides; None: what it rounds itself moves all rows."""


COLUMNS = (
    Column(REFERENCE[0], 1e-5),
    Column(EXACT, 1e-5),
    Column(REFERENCE[1], None),
    Column(NATIVE[0], None),
)

ODD: dict[str, Any] = {
    "hidden_size": 42,
    "intermediate_size": 72,
    "num_heads": 6,
    "num_kv_heads": 3,
    "head_dim": 6,
}
TIED: dict[str, Any] = {"tie_word_embeddings": True, "rope_theta": 500.0, "num_kv_heads": 1}
ROPE: dict[str, Any] = {"rope_scaling": LLAMA3_ROPE}


def small(**fields: Any) -> ModelConfig:
    return tiny_config(num_layers=4, **fields)


MODELS: Mapping[str, ModelConfig] = {
    **{name: small(**fields) for name, fields in VARIANTS.items()},
    "v1, odd sizes": small(**ODD),
    "v1, tied": small(**TIED),
    "v3, Llama 3 rope, tied": small(**VARIANTS["v3"], **TIED, **ROPE),
    "dense, odd sizes": small(weights="dense", **ODD),
    "dense, tied": small(weights="dense", **TIED),
    "dense, Llama 3 rope": small(weights="dense", **ROPE),
    "dense, Llama 3 rope, tied": small(weights="dense", **TIED, **ROPE),
}
NUM_SEQUENCES = 30


def checkpoint_of(config: ModelConfig) -> MemoryCheckpoint:
    """A random one; embeddings that are heads too are scaled to give logits like the others'."""
    checkpoint = MemoryCheckpoint(config, seed=11)
    if config.tie_word_embeddings:
        checkpoint.tensor(EMBEDDING)[:] *= 2 / np.sqrt(config.hidden_size)
    return checkpoint


def sequences_for(config: ModelConfig) -> list[list[int]]:
    """Short ones, for a row is decided only if all before it are; of dense models one longer.

    (Not the longest: transformers' rotary angles are float32, whose errors grow with position.)
    """
    rng = np.random.default_rng(17)
    lengths = [64] if config.is_dense else [5] * NUM_SEQUENCES
    return [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def table() -> Iterator[ParityTable]:
    with printed_table("Logits against transformers' Llama:") as table:
        yield table


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "column",
    [
        pytest.param(
            column,
            id=str(column.precision),
            marks=needs_native if column.precision.backend == "cpu" else (),
        )
        for column in COLUMNS
    ],
)
def test_logits_are_those_of_transformers(name: str, column: Column, table: ParityTable) -> None:
    checkpoint = checkpoint_of(MODELS[name])
    depth = checkpoint.config.num_layers
    backend = column.precision.make(checkpoint)
    parity = measure(
        lambda tokens: sequence_logits(backend, tokens, depth),
        LlamaOracle(checkpoint).read,
        sequences_for(checkpoint.config),
    )
    table.add(name, str(column.precision), parity)
    if column.tolerance is not None:
        assert parity.num_rows >= 30
        assert parity.max_error < column.tolerance
    assert parity.likeliest > (0.8 if column.tolerance is None else 0.9)


CHANGES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "bits": ("v1", {"activation_bits": 4}),
    "transform": ("v1", {"hadamard": "before"}),
    "order": ("v3", {"hadamard": "after"}),
    "order at 4 bits": ("v2", {"hadamard": "after"}),
    "rope scaling": ("dense", ROPE),
    "rope factor": (
        "dense, Llama 3 rope",
        {"rope_scaling": replace(LLAMA3_ROPE, factor=7.0)},
    ),
    "rope blend": (
        "dense, Llama 3 rope",
        {"rope_scaling": replace(LLAMA3_ROPE, high_freq_factor=3.5)},
    ),
    "rope base": ("dense", {"rope_theta": 9_900.0}),
    "epsilon": ("dense", {"rms_norm_eps": 2e-5}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_comparison_notices_another_model(change: str) -> None:
    """Mutants of the above: a backend that takes one field for another must not pass."""
    name, fields = CHANGES[change]
    checkpoint = checkpoint_of(MODELS[name])
    config = replace(checkpoint.config, **fields)
    wrong = MemoryCheckpoint.of(config, checkpoint._linears, checkpoint._tensors)
    backend = COLUMNS[0].precision.make(wrong)
    parity = measure(
        lambda tokens: sequence_logits(backend, tokens, config.num_layers),
        LlamaOracle(checkpoint).read,
        sequences_for(config),
    )
    assert parity.max_error > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("depth", [1, 3])
def test_exits_are_the_shorter_model(variant: str, depth: int) -> None:
    checkpoint = checkpoint_of(MODELS[variant])
    backend = COLUMNS[0].precision.make(checkpoint)
    parity = measure(
        lambda tokens: sequence_logits(backend, tokens, depth),
        LlamaOracle(checkpoint.truncated(depth)).read,
        sequences_for(checkpoint.config),
    )
    assert parity.num_rows >= 30
    assert parity.max_error < 1e-5

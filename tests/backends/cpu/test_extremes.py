"""Numbers at the edge of their formats: errors are raised, and nothing of them stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.backends.cpu.backend import CpuBackend
from engine.backends.protocol import Draw, Sweep
from engine.checkpoint.names import LINEARS, norm_names
from support.backend_variants import NATIVE, Precision, each_precision
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, sequence_logits, token_rows

# Sizes that leave padding in every buffer.
CONFIG = tiny_config(num_layers=2, hidden_size=40, intermediate_size=72, head_dim=10)
BAD_TOKEN = 95
GOOD = list(range(10, 30))


def make_checkpoint() -> MemoryCheckpoint:
    return MemoryCheckpoint(CONFIG, seed=2)


def make(checkpoint: MemoryCheckpoint, precision: Precision = NATIVE[0]) -> CpuBackend:
    backend = precision.make(checkpoint, threads=2)
    assert isinstance(backend, CpuBackend)
    return backend


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e20])
@each_precision(*NATIVE)
def test_a_token_beyond_the_range_fails_alone(precision: Precision, value: float) -> None:
    """1e20 is a float32; its square is not."""
    checkpoint = make_checkpoint()
    expected = sequence_logits(make(checkpoint, precision), GOOD, 2)
    checkpoint.tensor("embed_tokens.weight")[BAD_TOKEN, 7] = value
    backend = make(checkpoint, precision)
    assert_same_bits(sequence_logits(backend, GOOD, 2), expected)
    for company in ([BAD_TOKEN], [*GOOD, BAD_TOKEN], [BAD_TOKEN, *GOOD]):
        with pytest.raises(FloatingPointError):
            sequence_logits(backend, company, 2)
        assert_same_bits(sequence_logits(backend, GOOD, 2), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
@pytest.mark.parametrize("exit_norm", [True, False])
@each_precision(*NATIVE[::2])
def test_a_residual_beyond_the_range_fails_alone(
    precision: Precision, exit_norm: bool, value: float
) -> None:
    checkpoint = MemoryCheckpoint(replace(CONFIG, exit_norm=exit_norm))
    backend = make(checkpoint, precision)
    rows = np.random.default_rng(1).standard_normal((6, 40)).astype(np.float32)
    where, depths, draws = range(6), [1, 2] * 3, [Draw(0.5, 1, i) for i in range(6)]

    def answers() -> tuple[np.ndarray, list[int], tuple[list[int], list[float]]]:
        return (
            backend.head(rows, where, depths),
            backend.draw(rows, where, depths, draws),
            backend.draw_drafts(rows, where, depths, draws),
        )

    expected = answers()
    bad = rows.copy()
    bad[3, 39] = value
    calls: list[Callable[[], object]] = [
        lambda: backend.head(bad, where, depths),
        lambda: backend.draft_head(bad, where, depths),
        lambda: backend.draw(bad, where, depths, draws),
        lambda: backend.draw_drafts(bad, where, depths, draws),
    ]
    for call in calls:
        with pytest.raises(FloatingPointError):
            call()
        actual = answers()
        assert_same_bits(actual[0], expected[0])
        assert actual[1:] == expected[1:]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [*LINEARS, *norm_names(1), "norm.weight"])
def test_weights_that_are_not_finite_are_noticed(name: str, value: float) -> None:
    checkpoint = make_checkpoint()
    if name in LINEARS:
        linear = checkpoint._linears[1, name]
        checkpoint._linears[1, name] = replace(linear, scale=np.float32(value))
    else:
        checkpoint.tensor(name)[5] = value
    backend = make(checkpoint)
    with pytest.raises(FloatingPointError):
        sequence_logits(backend, GOOD, 2)
    if name != "norm.weight":  # what is wrong in layer 1 leaves layer 0 well
        expected = sequence_logits(make(make_checkpoint()), GOOD, 1)
        assert_same_bits(sequence_logits(backend, GOOD, 1), expected)


@pytest.mark.parametrize("linear", ["k_proj", "v_proj"])
def test_keys_and_values_beyond_float16_are_an_error_there(linear: str) -> None:
    """As int8 with a scale of their own they fit."""
    checkpoint = make_checkpoint()
    original = checkpoint._linears[0, linear]
    checkpoint._linears[0, linear] = replace(original, scale=original.scale * np.float32(1e6))
    with pytest.raises(FloatingPointError):
        sequence_logits(make(checkpoint, Precision("cpu", "int8", "fp16")), GOOD, 2)
    sequence_logits(make(checkpoint, Precision("cpu", "int8", "int8")), GOOD, 2)


def test_queries_so_long_that_scores_overflow_are_an_error() -> None:
    checkpoint = make_checkpoint()
    for linear, scale in (("q_proj", 1e36), ("k_proj", 1e2)):
        checkpoint._linears[0, linear] = replace(
            checkpoint._linears[0, linear], scale=np.float32(scale)
        )
    for precision in NATIVE[:2]:
        with pytest.raises(FloatingPointError):
            sequence_logits(make(checkpoint, precision), GOOD, 2)


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-12, 1e12])
@each_precision(*NATIVE[:2], NATIVE[-1])
def test_tiny_and_large_embeddings_are_numbers_like_others(
    precision: Precision, scale: float
) -> None:
    """The reference says what they come to: a norm makes nearly all of them ordinary."""
    checkpoint = make_checkpoint()
    embedding = checkpoint.tensor("embed_tokens.weight")
    embedding *= np.float32(scale)
    logits = sequence_logits(make(checkpoint, precision), GOOD, 2)
    reference = Precision("reference", "fp32", "fp32").make(checkpoint)
    expected = sequence_logits(reference, GOOD, 2)
    assert np.isfinite(logits).all()
    assert np.abs(logits - expected).max() < 0.25 * expected.std() + 1e-6


def test_a_caller_that_flushes_subnormals_changes_nothing() -> None:
    checkpoint = MemoryCheckpoint(replace(CONFIG, rms_norm_eps=1e-30), seed=2)
    checkpoint.tensor("embed_tokens.weight")[:] *= np.float32(1e-40)
    checkpoint.tensor(norm_names(0)[0])[:] *= np.float32(1e25)
    backend = make(checkpoint)
    rows = token_rows(GOOD, 0, len(GOOD), 2)
    answers = []
    for flush in (False, True):
        assert torch.set_flush_denormal(flush)
        try:
            maker = make(checkpoint) if flush else backend  # whose threads inherit the setting
            for one in (backend, maker):
                one.allocate(4, 8, 0)
                residuals = one.sweep(Sweep(rows, {0: range(4)}))
                answers.append((residuals, one.head(residuals, range(20), [2] * 20)))
        finally:
            torch.set_flush_denormal(False)
    for residuals, logits in answers[1:]:
        assert_same_bits(residuals, answers[0][0])
        assert_same_bits(logits, answers[0][1])
    # Were they flushed, all tokens would be alike.
    assert len(np.unique(answers[0][0], axis=0)) == len(GOOD)

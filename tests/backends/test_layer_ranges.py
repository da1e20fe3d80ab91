"""Rows over layer ranges: saved states, mixed depths, drafts and rollback."""

from __future__ import annotations

import numpy as np
import pytest

from engine.backends.protocol import Row, Sweep
from engine.backends.reference import ReferenceBackend
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, sequence_logits, token_rows

CONFIG = tiny_config()
DEPTH = CONFIG.num_layers
TOKENS = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 30).tolist()
BLOCK_SIZE = 4
TABLE = {0: [3, 1, 6, 0, 7, 2, 5, 4], 1: [8, 15, 9, 14, 10, 13, 11, 12]}


@pytest.fixture(scope="module")
def checkpoint() -> MemoryCheckpoint:
    return MemoryCheckpoint(CONFIG, seed=3)


@pytest.fixture
def backend(checkpoint: MemoryCheckpoint) -> ReferenceBackend:
    backend = ReferenceBackend(checkpoint, draft_vocab_size=40, always_draft_ids=(95,))
    backend.allocate(16, BLOCK_SIZE, 8)
    return backend


def full_residuals(checkpoint: MemoryCheckpoint, tokens: list[int], depth: int) -> np.ndarray:
    backend = ReferenceBackend(checkpoint, draft_vocab_size=40)
    backend.allocate(8, BLOCK_SIZE, 0)
    rows = token_rows(tokens, 0, len(tokens), depth)
    return backend.sweep(Sweep(rows, {0: range(8)})).numpy()


@pytest.mark.parametrize("middle", range(1, DEPTH))
def test_stopping_and_resuming_changes_nothing(
    backend: ReferenceBackend, checkpoint: MemoryCheckpoint, middle: int
) -> None:
    expected = full_residuals(checkpoint, TOKENS[:8], DEPTH)
    shallow = [Row(0, p, 0, middle, TOKENS[p], target_state=7 - p) for p in range(8)]
    deep = [Row(0, p, middle, DEPTH, None, source_state=7 - p) for p in range(8)]
    shallow_residuals = backend.sweep(Sweep(shallow, TABLE))
    assert_same_bits(shallow_residuals.numpy(), full_residuals(checkpoint, TOKENS[:8], middle))
    assert_same_bits(backend.sweep(Sweep(deep, TABLE)).numpy(), expected)


def test_a_state_may_be_read_and_replaced_in_one_sweep(
    backend: ReferenceBackend, checkpoint: MemoryCheckpoint
) -> None:
    backend.sweep(Sweep([Row(0, 0, 0, 2, TOKENS[0], target_state=0)], TABLE))
    swap = [
        Row(0, 0, 2, DEPTH, None, source_state=0),
        Row(1, 0, 0, 2, TOKENS[5], target_state=0),
    ]
    residuals = backend.sweep(Sweep(swap, TABLE)).numpy()
    assert_same_bits(residuals[:1], full_residuals(checkpoint, TOKENS[:1], DEPTH))
    resumed = backend.sweep(Sweep([Row(1, 0, 2, DEPTH, None, source_state=0)], TABLE))
    assert_same_bits(resumed.numpy(), full_residuals(checkpoint, TOKENS[5:6], DEPTH))


def test_depths_mix_in_one_sweep(backend: ReferenceBackend, checkpoint: MemoryCheckpoint) -> None:
    """Verify rows, an early-exit row, a prefill chunk and a draft row, all at once."""
    other = TOKENS[::-1]
    backend.sweep(Sweep(token_rows(TOKENS, 0, 10, DEPTH), TABLE))
    backend.sweep(Sweep([Row(0, p, 0, 2, TOKENS[p], target_state=p - 10) for p in (10, 11)], TABLE))
    tables = {**TABLE, 2: TABLE[1][4:]}
    rows = [
        *(Row(0, p, 2, DEPTH, None, source_state=p - 10) for p in (10, 11)),
        Row(0, 12, 0, DEPTH, TOKENS[12]),
        *token_rows(other, 0, 5, DEPTH, sequence=1),
        Row(2, 0, 0, 3, other[7]),
        Row(2, 1, 0, 1, other[8]),
    ]
    residuals = backend.sweep(Sweep(rows, tables)).numpy()
    assert_same_bits(residuals[:3], full_residuals(checkpoint, TOKENS[:13], DEPTH)[10:])
    assert_same_bits(residuals[3:8], full_residuals(checkpoint, other[:5], DEPTH))
    assert_same_bits(residuals[8:9], full_residuals(checkpoint, other[7:8], 3))
    assert_same_bits(residuals[9:], full_residuals(checkpoint, other[7:9], 1)[1:])


def draft_and_verify(
    backend: ReferenceBackend, tokens: list[int], drafted: list[int]
) -> np.ndarray:
    """Draft `drafted` after `tokens` with 2 layers, verify, return the verify rows' residuals."""
    start, sweep = len(tokens) - 1, [tokens[-1], *drafted]
    for offset, token in enumerate(sweep[:-1]):
        row = Row(0, start + offset, 0, 2, token, target_state=offset)
        backend.sweep(Sweep([row], TABLE))
    rows = [Row(0, start + i, 2, DEPTH, None, source_state=i) for i in range(len(drafted))]
    rows.append(Row(0, start + len(drafted), 0, DEPTH, sweep[-1]))
    return backend.sweep(Sweep(rows, TABLE)).numpy()


def test_rejected_drafts_leave_no_trace(
    backend: ReferenceBackend, checkpoint: MemoryCheckpoint
) -> None:
    """Rounds of drafts, of which a random number is accepted; stale positions are overwritten."""
    expected = full_residuals(checkpoint, TOKENS, DEPTH)
    rng = np.random.default_rng(8)
    backend.sweep(Sweep(token_rows(TOKENS, 0, 4, DEPTH), TABLE))
    known = 5
    while known < len(TOKENS) - 4:
        num_drafts, num_right = 4, int(rng.integers(0, 5))
        drafted = TOKENS[known : known + num_right]
        drafted += [(TOKENS[known + num_right] + 1) % CONFIG.vocab_size] * (num_drafts - num_right)
        residuals = draft_and_verify(backend, TOKENS[:known], drafted)
        assert_same_bits(residuals[: num_right + 1], expected[known - 1 : known + num_right])
        if num_right < num_drafts:
            assert not np.array_equal(residuals[num_right + 1], expected[known + num_right])
        known += num_right + 1


def test_stale_positions_would_be_noticed(
    backend: ReferenceBackend, checkpoint: MemoryCheckpoint
) -> None:
    """A mutant of the above: a rejected position that is not run again spoils what follows."""
    expected = full_residuals(checkpoint, TOKENS[:8], DEPTH)
    backend.sweep(Sweep(token_rows(TOKENS, 0, 5, DEPTH), TABLE))
    wrong = (TOKENS[6] + 1) % CONFIG.vocab_size
    draft_and_verify(backend, TOKENS[:6], [wrong])
    skipped = backend.sweep(Sweep(token_rows(TOKENS, 7, 8, DEPTH), TABLE)).numpy()
    assert not np.array_equal(skipped, expected[7:])
    rerun = backend.sweep(Sweep(token_rows(TOKENS, 6, 8, DEPTH), TABLE)).numpy()
    assert_same_bits(rerun, expected[6:])


@pytest.mark.parametrize("exit_norm", [True, False])
@pytest.mark.parametrize("depth", range(1, DEPTH + 1))
def test_exit_is_the_shorter_model(depth: int, exit_norm: bool) -> None:
    """Exit e's residuals are the e-layer model's; its logits too where early exits are normed."""
    checkpoint = MemoryCheckpoint(tiny_config(exit_norm=exit_norm), seed=1)
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    short = ReferenceBackend(checkpoint.truncated(depth), draft_vocab_size=8)
    exit_logits = sequence_logits(backend, TOKENS, depth)
    short_logits = sequence_logits(short, TOKENS, depth)
    if exit_norm or depth == DEPTH:
        assert_same_bits(exit_logits, short_logits)
    else:
        # The shorter model is at its full depth, so it always norms.
        assert np.abs(exit_logits - short_logits).max() > 0.01


def test_one_head_call_mixes_normed_and_bare_rows() -> None:
    checkpoint = MemoryCheckpoint(tiny_config(exit_norm=False), seed=1)
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    backend.allocate(8, BLOCK_SIZE, 0)
    residuals = backend.sweep(Sweep(token_rows(TOKENS, 0, 4, DEPTH), {0: range(8)}))
    mixed = backend.head(residuals, [0, 1, 2, 3], [2, DEPTH, 3, DEPTH])
    for row, depth in enumerate([2, DEPTH, 3, DEPTH]):
        assert_same_bits(mixed[row : row + 1], backend.head(residuals, [row], [depth]))
    assert not np.array_equal(mixed[0], backend.head(residuals, [0], [DEPTH])[0])

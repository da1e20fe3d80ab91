"""Rows over layer ranges: saved states, mixed depths, drafts and rollback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

from engine.backends.protocol import Backend, Row, Sweep
from support.backend_variants import NATIVE, REFERENCE, Precision, each_precision
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, sequence_logits, token_rows

pytestmark = each_precision(REFERENCE[0], NATIVE[0], NATIVE[-1])

CONFIG = tiny_config()
DEPTH = CONFIG.num_layers
TOKENS = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 30).tolist()
BLOCK_SIZE = 4
TABLE = {0: [3, 1, 6, 0, 7, 2, 5, 4], 1: [8, 15, 9, 14, 10, 13, 11, 12]}


@pytest.fixture(scope="module")
def checkpoint() -> MemoryCheckpoint:
    return MemoryCheckpoint(CONFIG, seed=3)


@pytest.fixture
def backend(checkpoint: MemoryCheckpoint, precision: Precision) -> Iterator[Backend]:
    backend = precision.make(checkpoint, threads=2)
    backend.allocate(16, BLOCK_SIZE, 8)
    yield backend
    backend.close()


@pytest.fixture
def plain(checkpoint: MemoryCheckpoint, precision: Precision) -> Iterator[Backend]:
    """One to compare with."""
    backend = precision.make(checkpoint)
    yield backend
    backend.close()


def full_residuals(backend: Backend, tokens: list[int], depth: int) -> np.ndarray:
    """Of a sequence read in one sweep; allocates anew."""
    backend.allocate(8, BLOCK_SIZE, 0)
    return run(backend, token_rows(tokens, 0, len(tokens), depth), {0: range(8)})


def run(
    backend: Backend, rows: list[Row], tables: Mapping[int, Sequence[int]] = TABLE
) -> np.ndarray:
    return np.asarray(backend.sweep(Sweep(rows, tables)))


@pytest.mark.parametrize("middle", range(1, DEPTH))
def test_stopping_and_resuming_changes_nothing(
    backend: Backend, plain: Backend, middle: int
) -> None:
    expected = full_residuals(plain, TOKENS[:8], DEPTH)
    shallow = [Row(0, p, 0, middle, TOKENS[p], target_state=7 - p) for p in range(8)]
    deep = [Row(0, p, middle, DEPTH, None, source_state=7 - p) for p in range(8)]
    shallow_residuals = run(backend, shallow)
    assert_same_bits(shallow_residuals, full_residuals(plain, TOKENS[:8], middle))
    assert_same_bits(run(backend, deep), expected)


def test_a_state_may_be_read_and_replaced_in_one_sweep(backend: Backend, plain: Backend) -> None:
    run(backend, [Row(0, 0, 0, 2, TOKENS[0], target_state=0)])
    swap = [
        Row(0, 0, 2, DEPTH, None, source_state=0),
        Row(1, 0, 0, 2, TOKENS[5], target_state=0),
    ]
    residuals = run(backend, swap)
    assert_same_bits(residuals[:1], full_residuals(plain, TOKENS[:1], DEPTH))
    resumed = run(backend, [Row(1, 0, 2, DEPTH, None, source_state=0)])
    assert_same_bits(resumed, full_residuals(plain, TOKENS[5:6], DEPTH))


def test_depths_mix_in_one_sweep(backend: Backend, plain: Backend) -> None:
    """Verify rows, an early-exit row, a prefill chunk and a draft row, all at once."""
    other = TOKENS[::-1]
    run(backend, token_rows(TOKENS, 0, 10, DEPTH))
    run(backend, [Row(0, p, 0, 2, TOKENS[p], target_state=p - 10) for p in (10, 11)])
    tables = {**TABLE, 2: TABLE[1][4:]}
    rows = [
        *(Row(0, p, 2, DEPTH, None, source_state=p - 10) for p in (10, 11)),
        Row(0, 12, 0, DEPTH, TOKENS[12]),
        *token_rows(other, 0, 5, DEPTH, sequence=1),
        Row(2, 0, 0, 3, other[7]),
        Row(2, 1, 0, 1, other[8]),
    ]
    residuals = run(backend, rows, tables)
    assert_same_bits(residuals[:3], full_residuals(plain, TOKENS[:13], DEPTH)[10:])
    assert_same_bits(residuals[3:8], full_residuals(plain, other[:5], DEPTH))
    assert_same_bits(residuals[8:9], full_residuals(plain, other[7:8], 3))
    assert_same_bits(residuals[9:], full_residuals(plain, other[7:9], 1)[1:])


def draft_and_verify(backend: Backend, tokens: list[int], drafted: list[int]) -> np.ndarray:
    """Draft `drafted` after `tokens` with 2 layers, verify, return the verify rows' residuals."""
    start, sweep = len(tokens) - 1, [tokens[-1], *drafted]
    for offset, token in enumerate(sweep[:-1]):
        row = Row(0, start + offset, 0, 2, token, target_state=offset)
        run(backend, [row])
    rows = [Row(0, start + i, 2, DEPTH, None, source_state=i) for i in range(len(drafted))]
    rows.append(Row(0, start + len(drafted), 0, DEPTH, sweep[-1]))
    return run(backend, rows)


def test_rejected_drafts_leave_no_trace(backend: Backend, plain: Backend) -> None:
    """Rounds of drafts, of which a random number is accepted; stale positions are overwritten."""
    expected = full_residuals(plain, TOKENS, DEPTH)
    rng = np.random.default_rng(8)
    run(backend, token_rows(TOKENS, 0, 4, DEPTH))
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


def test_stale_positions_would_be_noticed(backend: Backend, plain: Backend) -> None:
    """A mutant of the above: a rejected position that is not run again spoils what follows."""
    expected = full_residuals(plain, TOKENS[:8], DEPTH)
    run(backend, token_rows(TOKENS, 0, 5, DEPTH))
    wrong = (TOKENS[6] + 1) % CONFIG.vocab_size
    draft_and_verify(backend, TOKENS[:6], [wrong])
    skipped = run(backend, token_rows(TOKENS, 7, 8, DEPTH))
    assert not np.array_equal(skipped, expected[7:])
    rerun = run(backend, token_rows(TOKENS, 6, 8, DEPTH))
    assert_same_bits(rerun, expected[6:])


@pytest.mark.parametrize("exit_norm", [True, False])
@pytest.mark.parametrize("depth", range(1, DEPTH + 1))
def test_exit_is_the_shorter_model(depth: int, exit_norm: bool, precision: Precision) -> None:
    """Exit e's residuals are the e-layer model's; its logits too where early exits are normed."""
    checkpoint = MemoryCheckpoint(tiny_config(exit_norm=exit_norm), seed=1)
    backend = precision.make(checkpoint)
    short = precision.make(checkpoint.truncated(depth))
    exit_logits = sequence_logits(backend, TOKENS, depth)
    short_logits = sequence_logits(short, TOKENS, depth)
    if exit_norm or depth == DEPTH:
        assert_same_bits(exit_logits, short_logits)
    else:
        # The shorter model is at its full depth, so it always norms.
        assert np.abs(exit_logits - short_logits).max() > 0.01


def test_one_head_call_mixes_normed_and_bare_rows(precision: Precision) -> None:
    checkpoint = MemoryCheckpoint(tiny_config(exit_norm=False), seed=1)
    backend = precision.make(checkpoint)
    backend.allocate(8, BLOCK_SIZE, 0)
    residuals = backend.sweep(Sweep(token_rows(TOKENS, 0, 4, DEPTH), {0: range(8)}))
    mixed = backend.head(residuals, [0, 1, 2, 3], [2, DEPTH, 3, DEPTH])
    for row, depth in enumerate([2, DEPTH, 3, DEPTH]):
        assert_same_bits(mixed[row : row + 1], backend.head(residuals, [row], [depth]))
    assert not np.array_equal(mixed[0], backend.head(residuals, [0], [DEPTH])[0])

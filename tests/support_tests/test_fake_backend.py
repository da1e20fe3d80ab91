"""The fake backend is exact, and notices what it is there to notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.backends.protocol import Backend, Row, Sweep
from support.fake_backend import CONTENT, FakeBackend, TableBackend, fake_config

NUM_LAYERS, DRAFT_LAYERS, BLOCK_SIZE = 6, 2, 4
CONFIG = fake_config(vocab_size=64, num_layers=NUM_LAYERS, eos_token_ids=(60,))
TABLE_CONFIG = fake_config(vocab_size=6, num_layers=NUM_LAYERS)
TOKENS = np.random.default_rng(7).integers(0, 6, size=23).tolist()
TABLE = [5, 2, 11, 7, 0, 9]

Logits = NDArray[np.float32]
MAKERS: tuple[Callable[..., FakeBackend], ...] = (
    lambda **options: FakeBackend(CONFIG, **options),
    lambda **options: FakeBackend(CONFIG, context_tokens=2, **options),
    lambda **options: TableBackend(TABLE_CONFIG, **options),
)
every_backend = pytest.mark.parametrize("make", MAKERS, ids=("fake", "local", "table"))


def allocated(backend: FakeBackend, num_states: int = 16) -> FakeBackend:
    backend.allocate(12, BLOCK_SIZE, num_states)
    return backend


def plain_rows(
    tokens: Sequence[int], start: int = 0, last: int = NUM_LAYERS, sequence: int = 0
) -> list[Row]:
    return [Row(sequence, start + i, 0, last, token) for i, token in enumerate(tokens)]


def run(backend: Backend, rows: Sequence[Row], table: Sequence[int] = TABLE) -> Logits:
    """The logits of all rows, at their own depths."""
    residuals = backend.sweep(Sweep(rows, {row.sequence: table for row in rows}))
    return backend.head(residuals, range(len(rows)), [row.last for row in rows])


def one_sweep(make: Callable[..., FakeBackend]) -> Logits:
    return run(allocated(make()), plain_rows(TOKENS))


def draft_and_verify(backend: FakeBackend, known: int, drafts: Sequence[int]) -> Logits:
    """One round after `known` tokens with full K/V, TOKENS[known] being the last known."""
    fed = [TOKENS[known], *drafts]
    for offset, token in enumerate(fed[:-1]):
        run(backend, [Row(0, known + offset, 0, DRAFT_LAYERS, token, target_state=offset)])
    verify = [
        Row(0, known + offset, DRAFT_LAYERS, NUM_LAYERS, None, source_state=offset)
        for offset in range(len(drafts))
    ]
    bonus = Row(0, known + len(drafts), 0, NUM_LAYERS, fed[-1])
    logits = run(backend, [*verify, bonus])
    backend.forget_states()
    return logits


@every_backend
def test_token_by_token_equals_one_sweep(make: Callable[..., FakeBackend]) -> None:
    backend = allocated(make())
    rows = [run(backend, [row]) for row in plain_rows(TOKENS)]
    np.testing.assert_array_equal(np.concatenate(rows), one_sweep(make))


@every_backend
@pytest.mark.parametrize("chunk", [2, 3, 4, 7, 22])
def test_chunks_equal_one_sweep(make: Callable[..., FakeBackend], chunk: int) -> None:
    backend, rows = allocated(make()), plain_rows(TOKENS)
    parts = [run(backend, rows[i : i + chunk]) for i in range(0, len(rows), chunk)]
    np.testing.assert_array_equal(np.concatenate(parts), one_sweep(make))


@every_backend
@pytest.mark.parametrize("num_wrong", [0, 1, 2, 3])
def test_rounds_with_rejected_drafts_equal_one_sweep(
    make: Callable[..., FakeBackend], num_wrong: int
) -> None:
    expected, backend = one_sweep(make), allocated(make())
    known = 5
    run(backend, plain_rows(TOKENS[:known]))
    while known + 4 < len(TOKENS):
        drafts = list(TOKENS[known + 1 : known + 4])
        num_right = len(drafts) - num_wrong
        drafts[num_right:] = [(token + 1) % 6 for token in drafts[num_right:]]
        logits = draft_and_verify(backend, known, drafts)
        right = logits[: num_right + 1]
        np.testing.assert_array_equal(right, expected[known : known + len(right)])
        known += len(right)


@every_backend
def test_mixed_batches_equal_lone_rows(make: Callable[..., FakeBackend]) -> None:
    """Sequences at different positions and depths, in any order of rows, share a sweep."""
    lone, batched = allocated(make()), allocated(make())
    tables = {0: [0, 1], 1: [2, 3], 2: [4, 5]}
    tokens = {0: TOKENS[:8], 1: TOKENS[8:12], 2: TOKENS[12:19]}
    exits = {0: NUM_LAYERS, 1: 3, 2: 4}
    expected: dict[tuple[int, int], Logits] = {}
    for sequence, table in tables.items():
        for row in plain_rows(tokens[sequence], last=exits[sequence], sequence=sequence):
            expected[sequence, row.position] = run(lone, [row], table)[0]
    rng = np.random.default_rng(3)
    fed = dict.fromkeys(tables, 0)
    while any(fed[s] < len(tokens[s]) for s in tables):
        rows: list[Row] = []
        for sequence in rng.permutation(len(tables)).tolist():
            count = int(rng.integers(0, 4))
            part = tokens[sequence][fed[sequence] : fed[sequence] + count]
            rows += plain_rows(part, fed[sequence], exits[sequence], sequence)
            fed[sequence] += len(part)
        rows.sort(key=lambda row: (row.position, -row.sequence))
        residuals = batched.sweep(Sweep(rows, tables))
        logits = batched.head(residuals, range(len(rows)), [row.last for row in rows])
        for row, row_logits in zip(rows, logits, strict=True):
            np.testing.assert_array_equal(row_logits, expected[row.sequence, row.position])


@every_backend
def test_placement_of_blocks_changes_nothing(make: Callable[..., FakeBackend]) -> None:
    moved = run(allocated(make()), plain_rows(TOKENS), [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(moved, one_sweep(make))


@every_backend
def test_any_corrupt_cell_changes_the_next_logits(make: Callable[..., FakeBackend]) -> None:
    expected = one_sweep(make)[-1]
    backend = allocated(make())
    run(backend, plain_rows(TOKENS[:-1]))
    last = plain_rows(TOKENS[-1:], start=len(TOKENS) - 1)
    for position in range(len(TOKENS) - 1):
        slot = TABLE[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        for layer in range(NUM_LAYERS):
            backend.cells[layer, slot] ^= np.uint64(1)
            changed = run(backend, last)[0]
            backend.cells[layer, slot] ^= np.uint64(1)
            assert (changed != expected).any(), f"layer {layer}, position {position}"
    np.testing.assert_array_equal(run(backend, last)[0], expected)


@every_backend
def test_swapped_blocks_are_noticed(make: Callable[..., FakeBackend]) -> None:
    expected = one_sweep(make)[-1]
    swapped = [TABLE[1], TABLE[0], *TABLE[2:]]
    last = plain_rows(TOKENS[-1:], start=len(TOKENS) - 1)
    for check_reads in (False, True):
        backend = allocated(make(check_reads=check_reads))
        run(backend, plain_rows(TOKENS[:-1]))
        if check_reads:
            with pytest.raises(AssertionError, match="holds position 4"):
                run(backend, last, swapped)
        else:
            assert (run(backend, last, swapped)[0] != expected).any()


@every_backend
def test_stale_deep_cells_of_a_rejected_draft_are_noticed(
    make: Callable[..., FakeBackend],
) -> None:
    """What goes wrong when a rejected draft's K/V is kept: deep cells of another token."""
    backend = allocated(make())
    run(backend, plain_rows(TOKENS[:5]))
    wrong = (TOKENS[6] + 1) % 6
    draft_and_verify(backend, 5, [wrong])
    run(backend, [Row(0, 6, 0, DRAFT_LAYERS, TOKENS[6])])
    stale = run(backend, plain_rows(TOKENS[7:8], start=7))[0]
    assert (stale != one_sweep(make)[7]).any()


def test_reading_what_was_never_written_fails_or_reads_poison() -> None:
    row = plain_rows([1], start=3)
    with pytest.raises(AssertionError, match="layer 0 from slot 20, which was never written"):
        run(allocated(FakeBackend(CONFIG)), row)
    backend = FakeBackend(CONFIG, check_reads=False)
    first, second = (run(allocated(backend), row) for _ in range(2))
    other = run(allocated(FakeBackend(CONFIG, check_reads=False, poison_seed=1)), row)
    again = run(allocated(FakeBackend(CONFIG, check_reads=False)), row)
    assert (first != second).any() and (first != other).any()
    np.testing.assert_array_equal(first, again)


def test_cells_are_missing_only_above_the_depth_that_was_written() -> None:
    backend = allocated(FakeBackend(CONFIG))
    run(backend, plain_rows(TOKENS[:4], last=3))
    run(backend, plain_rows(TOKENS[4:5], start=4, last=3))
    with pytest.raises(AssertionError, match="position 0 is read at layer 3 "):
        run(backend, plain_rows(TOKENS[5:6], start=5, last=4))


def acceptance(backend: FakeBackend, num_tokens: int = 200) -> float:
    """The share of greedy draft tokens that the full depth agrees with."""
    tokens = np.random.default_rng(5).integers(0, backend.config.vocab_size, num_tokens).tolist()
    best = []
    for depth in (DRAFT_LAYERS, NUM_LAYERS):
        backend.allocate(1, num_tokens, 0)
        best.append(run(backend, plain_rows(tokens, last=depth), [0]).argmax(axis=1))
    return float((best[0] == best[1]).mean())


@pytest.mark.parametrize("kind", [FakeBackend, TableBackend])
def test_agreement_dials_acceptance(kind: type[FakeBackend]) -> None:
    config = CONFIG if kind is FakeBackend else TABLE_CONFIG
    rates = [acceptance(kind(config, agreement)) for agreement in (0.0, 0.3, 0.6, 1.0)]
    assert rates == sorted(rates) and rates[0] < rates[2] < rates[3] == 1.0
    assert 0.3 <= rates[2] <= 0.8


def test_logits_spread_like_a_language_model() -> None:
    logits = one_sweep(MAKERS[0])
    assert 2.0 < logits.std(axis=1).mean() < 3.0
    assert len(np.unique(logits[0])) == CONFIG.vocab_size


def test_logit_bias_is_added_at_every_exit() -> None:
    plain, biased = FakeBackend(CONFIG), FakeBackend(CONFIG, logit_bias={60: 3.0})
    for depth in (1, NUM_LAYERS):
        rows = plain_rows(TOKENS, last=depth)
        difference = run(allocated(biased), rows) - run(allocated(plain), rows)
        np.testing.assert_allclose(difference[:, 60], 3.0, rtol=1e-5)
        np.testing.assert_array_equal(np.delete(difference, 60, axis=1), 0.0)


def test_context_tokens_make_the_shared_part_local() -> None:
    backend = allocated(FakeBackend(CONFIG, context_tokens=2))
    rows = plain_rows([1, 2, 3, 9, 2, 3, 4, 3])
    content = backend.sweep(Sweep(rows, {0: TABLE}))[:, CONTENT]
    assert content[2] == content[5]
    assert len(set(content.tolist())) == len(rows) - 1


def test_draft_head_is_the_head_on_the_draft_vocabulary() -> None:
    backend = allocated(FakeBackend(CONFIG, draft_vocab_size=10))
    assert backend.draft_ids.tolist() == [*range(10), 60]
    residuals = backend.sweep(Sweep(plain_rows(TOKENS, last=DRAFT_LAYERS), {0: TABLE}))
    picked, depths = [20, 3, 3], [DRAFT_LAYERS] * 3
    full = backend.head(residuals, picked, depths)
    draft = backend.draft_head(residuals, picked, depths)
    assert full.dtype == draft.dtype == np.float32
    np.testing.assert_array_equal(draft, full[:, backend.draft_ids])
    with pytest.raises(AssertionError, match="the head is told"):
        backend.head(residuals, [0], [NUM_LAYERS])


def test_counters_show_that_verification_reuses_the_drafts_layers() -> None:
    backend = allocated(FakeBackend(CONFIG, keep_log=True))
    run(backend, plain_rows(TOKENS[:5]))
    before = backend.counters.rows_per_layer.copy()
    draft_and_verify(backend, 5, [1, 2, 3])
    ran = backend.counters.rows_per_layer - before
    assert ran.tolist() == [4] * NUM_LAYERS
    assert backend.counters.num_sweeps == len(backend.counters.log) == 5
    assert [row.first for row in backend.counters.log[-1]] == [DRAFT_LAYERS] * 3 + [0]
    assert backend.counters.num_head_rows == 5 + 3 + 4
    assert allocated(backend).counters.num_sweeps == 0


GOOD = Row(0, 0, 0, NUM_LAYERS, 1)
SAVED = Row(0, 0, 0, DRAFT_LAYERS, 1, target_state=0)
VIOLATIONS: dict[str, tuple[list[Row], dict[int, Any], str]] = {
    "empty range": ([GOOD._replace(first=2, last=2)], {0: TABLE}, "are not a range"),
    "too deep": ([GOOD._replace(last=NUM_LAYERS + 1)], {0: TABLE}, "are not a range"),
    "no source": ([GOOD._replace(token=None)], {0: TABLE}, "either a token or"),
    "two sources": ([GOOD._replace(source_state=0)], {0: TABLE}, "either a token or"),
    "token starts deep": ([GOOD._replace(first=1)], {0: TABLE}, "starts deeper"),
    "token outside": ([GOOD._replace(token=64)], {0: TABLE}, "no such token"),
    "position outside": ([GOOD._replace(position=256)], {0: TABLE}, "position beyond"),
    "descending": ([GOOD._replace(position=1), GOOD], {0: TABLE}, "do not ascend"),
    "same position": ([GOOD, GOOD], {0: TABLE}, "do not ascend"),
    "no table": ([GOOD], {1: TABLE}, "has no block table"),
    "short table": ([GOOD._replace(position=4)], {0: [3]}, "do not reach position 4"),
    "unknown block": ([GOOD], {0: [12]}, "a block outside"),
    "negative block": ([GOOD], {0: [-1]}, "a block outside"),
    "block twice": ([GOOD], {0: [3, 3]}, "a block twice"),
    "same cell": ([GOOD, GOOD._replace(sequence=1)], {0: [3], 1: [3]}, "while two sequences"),
    "unsaved state": ([Row(0, 0, 2, 6, None, source_state=5)], {0: TABLE}, "is read but not"),
    "unknown state": ([SAVED._replace(target_state=16)], {0: TABLE}, "slot 16 does not exist"),
    "state twice": ([SAVED, SAVED._replace(position=1)], {0: TABLE}, "used twice"),
    "state of another position": ([Row(0, 1, 2, 6, None, 1)], {0: TABLE}, "holds position 0"),
    "state of another depth": ([Row(0, 0, 3, 6, None, 1)], {0: TABLE}, "after 2 layers"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_breaches_of_the_protocol_are_assertion_errors(name: str) -> None:
    rows, tables, message = VIOLATIONS[name]
    backend = allocated(FakeBackend(CONFIG))
    run(backend, [SAVED._replace(target_state=1)])
    with pytest.raises(AssertionError, match=message):
        backend.sweep(Sweep(rows, tables))


def test_blocks_shared_for_reading_are_fine() -> None:
    backend = allocated(FakeBackend(CONFIG))
    run(backend, plain_rows(TOKENS[:4]))
    rows = [GOOD._replace(sequence=s, position=4, token=TOKENS[4]) for s in (0, 1)]
    residuals = backend.sweep(Sweep(rows, {0: [TABLE[0], 8], 1: [TABLE[0], 9]}))
    logits = backend.head(residuals, [0, 1], [NUM_LAYERS] * 2)
    np.testing.assert_array_equal(logits, np.stack([one_sweep(MAKERS[0])[4]] * 2))


def test_forgotten_states_and_closed_backends_are_refused() -> None:
    backend = FakeBackend(CONFIG)
    with pytest.raises(AssertionError, match="before allocate"):
        run(backend, [GOOD])
    run(allocated(backend), [SAVED])
    backend.forget_states()
    with pytest.raises(AssertionError, match="is read but not saved"):
        run(backend, [Row(0, 0, DRAFT_LAYERS, NUM_LAYERS, None, source_state=0)])
    backend.close()
    with pytest.raises(AssertionError, match="after close"):
        run(backend, [GOOD])


@pytest.mark.parametrize("depth", [1, DRAFT_LAYERS, NUM_LAYERS])
def test_table_backend_gives_the_rows_of_its_table(depth: int) -> None:
    backend = TableBackend(TABLE_CONFIG)
    table = backend.table(depth)
    assert table.shape == (6, 6, 6)
    assert len(np.unique(table.reshape(36, 6), axis=0)) == 36
    logits = run(allocated(backend), plain_rows(TOKENS, last=depth))
    np.testing.assert_array_equal(logits, table[[0, *TOKENS[:-1]], TOKENS])


def test_tables_of_two_depths_differ() -> None:
    backend = TableBackend(TABLE_CONFIG, agreement=0.6)
    assert (backend.table(DRAFT_LAYERS) != backend.table(NUM_LAYERS)).all()

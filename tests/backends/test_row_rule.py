"""A row's floats depend on that row and the cache alone, bit for bit.

Not on the other rows, how they come in sweeps and blocks, nor on where a sweep stopped half way;
nor, in the native code, on the instruction set and the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.backends.protocol import Backend, Draw, Residuals, Row, Sweep
from engine.config import ModelConfig
from support.backend_variants import FAMILY, NATIVE, REFERENCE, Precision, each_precision
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, token_rows
from support.variants import VARIANTS

SHAPES = {
    "even": tiny_config(num_layers=3, vocab_size=97),
    "odd": tiny_config(
        num_layers=3,
        vocab_size=101,
        hidden_size=40,
        intermediate_size=72,
        num_heads=6,
        num_kv_heads=3,
        head_dim=6,
        exit_norm=False,
    ),
    "one-kv-head": tiny_config(
        num_layers=2, vocab_size=300, hidden_size=50, num_kv_heads=1, head_dim=10
    ),
    "wide": tiny_config(
        num_layers=2,
        vocab_size=1003,
        hidden_size=264,
        intermediate_size=520,
        num_heads=8,
        num_kv_heads=2,
        head_dim=34,
    ),
}
VARIANT_SHAPE = {
    "num_layers": 3,
    "vocab_size": 211,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
}
LENGTHS = {"reference": (1, 7, 19, 37), "cpu": (1, 7, 37, 70)}
NUM_CASES = {"reference": 12, "cpu": 20}


@dataclass(slots=True)
class Reading:
    """All that a backend says of one sequence's rows, in order of position."""

    residuals: list[NDArray[np.float32]] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    draft_logits: list[NDArray[np.float32]] = field(default_factory=list)
    draws: list[tuple[int, int, float]] = field(default_factory=list)
    """Drawn token, drafted token, confidence."""

    def add(
        self, backend: Backend, residuals: Residuals, where: list[int], rows: list[Row]
    ) -> None:
        """Note `rows`, whose residuals lie at `where`, and what the heads make of them."""
        depths = [row.last for row in rows]
        draws = [Draw((0.0, 0.7, 1.5)[row.position % 3], 77, row.position + 1) for row in rows]
        self.residuals += list(np.asarray(residuals)[where])
        self.logits += list(backend.head(residuals, where, depths))
        self.draft_logits += list(backend.draft_head(residuals, where, depths))
        tokens = backend.draw(residuals, where, depths, draws)
        self.draws += zip(
            tokens, *backend.draw_drafts(residuals, where, depths, draws), strict=True
        )

    def assert_equals(self, other: Reading) -> None:
        for mine, others in (
            (self.residuals, other.residuals),
            (self.logits, other.logits),
            (self.draft_logits, other.draft_logits),
        ):
            assert_same_bits(np.stack(mine), np.stack(others))
        assert self.draws == other.draws


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def alone(backend: Backend, tokens: list[int], depth: int) -> Reading:
    """A sequence read one row per sweep, on one thread."""
    torch.set_num_threads(1)
    backend.allocate(len(tokens), 1, 0)
    reading = Reading()
    for position in range(len(tokens)):
        rows = token_rows(tokens, position, position + 1, depth)
        residuals = backend.sweep(Sweep(rows, {0: range(len(tokens))}))
        reading.add(backend, residuals, [0], rows)
    return reading


def together(
    backend: Backend, sequences: list[list[int]], depths: list[int], rng: np.random.Generator
) -> list[Reading]:
    """Several sequences in random sweeps, chunks and blocks; some rows stop, and resume later."""
    block_size = int(rng.integers(1, 9))
    num_blocks = [-(-len(tokens) // block_size) for tokens in sequences]
    shuffled = rng.permutation(sum(num_blocks) + 3).tolist()
    tables: dict[int, list[int]] = {}
    for index, count in enumerate(num_blocks):
        tables[index], shuffled = shuffled[:count], shuffled[count:]
    backend.allocate(sum(num_blocks) + 3, block_size, sum(map(len, sequences)))
    states = rng.permutation(sum(map(len, sequences))).tolist()
    readings = [Reading() for _ in sequences]
    done = [0] * len(sequences)
    paused: list[Row] = []
    while paused or any(n < len(tokens) for n, tokens in zip(done, sequences, strict=True)):
        torch.set_num_threads(int(rng.integers(1, 3)))
        rows, paused = paused, []
        busy = {row.sequence for row in rows}
        for index in rng.permutation(len(sequences)).tolist():
            step = min(int(rng.choice([0, 1, 2, 5, 17, 37])), len(sequences[index]) - done[index])
            if index in busy or step == 0:
                continue
            chunk = token_rows(
                sequences[index], done[index], done[index] + step, depths[index], index
            )
            done[index] += step
            if depths[index] > 1 and rng.random() < 0.3:
                middle = int(rng.integers(1, depths[index]))
                for row in chunk:
                    state = states.pop()
                    rows.append(row._replace(last=middle, target_state=state))
                    paused.append(row._replace(first=middle, token=None, source_state=state))
            else:
                rows += chunk
        if not rows:
            continue
        order = rng.permutation(len(sequences)).tolist()
        rows.sort(key=lambda row: order[row.sequence])
        residuals = backend.sweep(Sweep(rows, tables))
        for index, reading in enumerate(readings):
            mine = [
                i for i, r in enumerate(rows) if r.sequence == index and r.last == depths[index]
            ]
            if mine:
                reading.add(backend, residuals, mine, [rows[i] for i in mine])
    return readings


def check_rows(config: ModelConfig, precision: Precision, num_cases: int) -> None:
    rng = np.random.default_rng(config.vocab_size)
    backends = precision.make_all(MemoryCheckpoint(config), always_draft_ids=(90, 95))
    lengths = LENGTHS[precision.backend]
    sequences = [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]
    depths = [config.num_layers, 1, config.num_layers, config.num_layers - 1]
    expected = [alone(backends[-1], *pair) for pair in zip(sequences, depths, strict=True)]
    for case in range(num_cases):
        actual = together(backends[case % len(backends)], sequences, depths, rng)
        for mine, one in zip(actual, expected, strict=True):
            mine.assert_equals(one)
    for backend in backends:
        backend.close()


@each_precision()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("restore_threads")
def test_rows_do_not_depend_on_their_company(shape: str, precision: Precision) -> None:
    check_rows(SHAPES[shape], precision, NUM_CASES[precision.backend])


@each_precision(*FAMILY)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "v1"])
@pytest.mark.usefixtures("restore_threads")
def test_nor_do_those_of_any_variant(variant: str, precision: Precision) -> None:
    check_rows(tiny_config(**VARIANT_SHAPE, **VARIANTS[variant]), precision, 4)


@each_precision(REFERENCE[0], NATIVE[0])
@pytest.mark.usefixtures("restore_threads")
def test_the_comparison_notices_a_foreign_key(precision: Precision) -> None:
    """A mutant of the above: rows that read one wrong block must not pass."""
    backend = precision.make(MemoryCheckpoint(SHAPES["even"]))
    tokens = list(range(9))
    expected = alone(backend, tokens, 3)
    backend.allocate(10, 1, 0)
    backend.sweep(Sweep(token_rows(tokens, 0, 8, 3), {0: range(8)}))
    table = [0, 1, 9, 3, 4, 5, 6, 7, 8]
    residuals = backend.sweep(Sweep(token_rows(tokens, 8, 9, 3), {0: table}))
    with pytest.raises(AssertionError):
        assert_same_bits(np.asarray(residuals), np.stack(expected.residuals[8:]))

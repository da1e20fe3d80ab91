"""A row's floats depend on that row and the cache alone, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from engine.backends.protocol import Row, Sweep
from engine.backends.reference import ReferenceBackend
from engine.config import ModelConfig
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, token_rows

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
NUM_CASES = 12


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def alone(
    backend: ReferenceBackend, tokens: list[int], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals and logits of a sequence read one row per sweep, on one thread."""
    torch.set_num_threads(1)
    backend.allocate(len(tokens), 1, 0)
    residuals, logits = [], []
    for position in range(len(tokens)):
        rows = token_rows(tokens, position, position + 1, depth)
        residual = backend.sweep(Sweep(rows, {0: range(len(tokens))}))
        residuals.append(residual.numpy())
        logits.append(backend.head(residual, [0], [depth]))
    return np.concatenate(residuals), np.concatenate(logits)


def together(
    backend: ReferenceBackend,
    sequences: list[list[int]],
    depths: list[int],
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same of several sequences, in random sweeps, chunks, blocks and thread counts."""
    block_size = int(rng.integers(1, 9))
    num_blocks = [-(-len(tokens) // block_size) for tokens in sequences]
    shuffled = rng.permutation(sum(num_blocks) + 3).tolist()
    tables: dict[int, list[int]] = {}
    for index, count in enumerate(num_blocks):
        tables[index], shuffled = shuffled[:count], shuffled[count:]
    backend.allocate(sum(num_blocks) + 3, block_size, 0)
    done = [0] * len(sequences)
    residuals: list[list[np.ndarray]] = [[] for _ in sequences]
    logits: list[list[np.ndarray]] = [[] for _ in sequences]
    while any(count < len(tokens) for count, tokens in zip(done, sequences, strict=True)):
        torch.set_num_threads(int(rng.integers(1, 3)))
        rows: list[Row] = []
        for index in rng.permutation(len(sequences)).tolist():
            step = min(int(rng.choice([0, 1, 2, 5, 17, 37])), len(sequences[index]) - done[index])
            rows += token_rows(
                sequences[index], done[index], done[index] + step, depths[index], index
            )
            done[index] += step
        if not rows:
            continue
        result = backend.sweep(Sweep(rows, tables))
        picked = rng.permutation(len(rows)).tolist()
        scores = backend.head(result, picked, [depths[rows[i].sequence] for i in picked])
        for i, row in enumerate(rows):
            residuals[row.sequence].append(result[i].numpy())
            logits[row.sequence].append(scores[picked.index(i)])
    return [(np.stack(r), np.stack(z)) for r, z in zip(residuals, logits, strict=True)]


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("restore_threads")
def test_rows_do_not_depend_on_their_company(shape: str, kv_dtype: str) -> None:
    config: ModelConfig = SHAPES[shape]
    rng = np.random.default_rng(len(shape))
    backend = ReferenceBackend(MemoryCheckpoint(config), kv_dtype=kv_dtype, draft_vocab_size=32)  # pyright: ignore[reportArgumentType]
    sequences = [rng.integers(0, config.vocab_size, length).tolist() for length in (1, 7, 19, 37)]
    depths = [config.num_layers, 1, config.num_layers, config.num_layers - 1]
    expected = [alone(backend, *pair) for pair in zip(sequences, depths, strict=True)]
    for _ in range(NUM_CASES):
        actual = together(backend, sequences, depths, rng)
        for (residuals, logits), (alone_residuals, alone_logits) in zip(
            actual, expected, strict=True
        ):
            assert_same_bits(residuals, alone_residuals)
            assert_same_bits(logits, alone_logits)


def test_the_comparison_notices_a_foreign_key() -> None:
    """A mutant of the above: rows that read one wrong block must not pass."""
    backend = ReferenceBackend(MemoryCheckpoint(SHAPES["even"]), draft_vocab_size=32)
    tokens = list(range(9))
    expected, _ = alone(backend, tokens, 3)
    backend.allocate(10, 1, 0)
    backend.sweep(Sweep(token_rows(tokens, 0, 8, 3), {0: range(8)}))
    table = [0, 1, 9, 3, 4, 5, 6, 7, 8]
    residual = backend.sweep(Sweep(token_rows(tokens, 8, 9, 3), {0: table}))
    with pytest.raises(AssertionError):
        assert_same_bits(residual.numpy(), expected[8:])

"""Native draws are those of `engine.sampling.drawing` over the backend's own logits."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from engine.backends.cpu.backend import CpuBackend
from engine.backends.protocol import Draw
from engine.sampling.drawing import draw, top_probability
from engine.types import SEED_LIMIT
from support.backend_variants import instruction_sets
from support.memory_checkpoint import MemoryCheckpoint, tiny_config

VOCAB = 9001
"""Several of the pieces in which the native code looks for the best."""
TWINS = (700, 4095, 4096, 8999)
"""Ids whose head rows are the same, and the likeliest of all for `FAVOURITE`."""
FAVOURITE = 3


def make_checkpoint() -> MemoryCheckpoint:
    config = tiny_config(num_layers=1, hidden_size=20, vocab_size=VOCAB)
    checkpoint = MemoryCheckpoint(config, seed=4)
    head, embedding = checkpoint.tensor("lm_head.weight"), checkpoint.tensor("embed_tokens.weight")
    head[list(TWINS)] = 8.0 * embedding[FAVOURITE]
    return checkpoint


CHECKPOINT = make_checkpoint()
TEMPERATURES = (0.0, 1e-300, 1e-6, 0.05, 0.7, 1.0, 3.0, 100.0, 1e30)


@pytest.fixture(
    params=[(isa, threads) for isa in instruction_sets() for threads in (1, 3)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    isa, threads = request.param
    return CpuBackend(
        CHECKPOINT, draft_vocab_size=5000, always_draft_ids=(8999, 6001), isa=isa, threads=threads
    )


def residuals(num_rows: int) -> np.ndarray:
    rng = np.random.default_rng(num_rows)
    rows = rng.standard_normal((num_rows, 20)).astype(np.float32)
    rows[0] = CHECKPOINT.tensor("embed_tokens.weight")[FAVOURITE]
    rows[1] = 0.0  # all logits are equal
    return rows


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_draws_are_those_of_the_logits(backend: CpuBackend, temperature: float) -> None:
    rows = residuals(40)
    where, depths = range(40), [1] * 40
    draws = [Draw(temperature, SEED_LIMIT - 1 - 7 * i, 2**31 - i) for i in range(40)]
    expected = [
        draw(logits, *pick)
        for logits, pick in zip(backend.head(rows, where, depths), draws, strict=True)
    ]
    assert backend.draw(rows, where, depths, draws) == expected
    draft = backend.draft_head(rows, where, depths)
    tokens, confidences = backend.draw_drafts(rows, where, depths, draws)
    assert tokens == [
        draw(logits, *pick, backend.draft_ids) for logits, pick in zip(draft, draws, strict=True)
    ]
    np.testing.assert_allclose(confidences, [top_probability(z) for z in draft], rtol=2e-6)


def test_ties_go_to_the_lowest_id(backend: CpuBackend) -> None:
    rows, greedy = residuals(2), [Draw(0.0, 1, 1)] * 2
    logits = backend.head(rows, [0, 1], [1, 1])
    assert {int(i) for i in np.flatnonzero(logits[0] == logits[0].max())} == set(TWINS)
    assert backend.draw(rows, [0, 1], [1, 1], greedy) == [TWINS[0], 0]
    assert backend.draw_drafts(rows, [0, 1], [1, 1], greedy)[0] == [TWINS[0], 0]


def test_each_row_has_its_own_draw(backend: CpuBackend) -> None:
    rows = residuals(30)
    draws = [Draw((0.0, 1.0, 2.0)[i % 3], i, 5 * i) for i in range(30)]
    together = backend.draw(rows, range(30), [1] * 30, draws)
    alone = [backend.draw(rows, [i], [1], [draws[i]])[0] for i in range(30)]
    assert together == alone
    assert len(set(backend.draw(rows, [2] * 30, [1] * 30, draws)[1::3])) > 5


def test_seeds_count_modulo_two_to_the_64(backend: CpuBackend) -> None:
    rows = residuals(3)
    for seed in (0, 1, 2**63, SEED_LIMIT - 1):
        one, other = (
            backend.draw(rows, [2] * 9, [1] * 9, [Draw(1.0, value, p) for p in range(9)])
            for value in (seed, seed + SEED_LIMIT)
        )
        assert one == other


@pytest.mark.parametrize("temperature", [-1.0, float("nan")])
def test_temperatures_that_mean_nothing_are_refused(
    backend: CpuBackend, temperature: float
) -> None:
    with pytest.raises(ValueError, match="temperature"):
        backend.draw(residuals(3), [2], [1], [Draw(temperature, 1, 1)])


@pytest.mark.parametrize("head_dtype", ["int8", "bf16", "fp32"])
def test_scattered_draft_ids_score_as_in_the_full_head(
    head_dtype: Literal["int8", "bf16", "fp32"],
) -> None:
    """So many that their rows are copied."""
    ranking = [*range(1, 9000, 3), *range(0, 9000, 3), *range(2, 9000, 3)]
    backend = CpuBackend(
        CHECKPOINT, draft_vocab_size=2000, draft_ranking=ranking, head_dtype=head_dtype, threads=2
    )
    rows, where, depths = residuals(9), range(9), [1] * 9
    assert backend.draft_ids.tolist() == ranking[:2000]
    drafted = backend.draft_head(rows, where, depths)
    np.testing.assert_array_equal(drafted, backend.head(rows, where, depths)[:, backend.draft_ids])
    draws = [Draw(0.7, 7 * i, i) for i in range(9)]
    tokens, _ = backend.draw_drafts(rows, where, depths, draws)
    assert tokens == [
        draw(logits, *pick, backend.draft_ids) for logits, pick in zip(drafted, draws, strict=True)
    ]


def test_an_empty_draft_vocabulary_gives_no_draws() -> None:
    backend = CpuBackend(CHECKPOINT, draft_vocab_size=0, threads=1)
    assert backend.draft_head(residuals(3), [0], [1]).shape == (1, 0)
    with pytest.raises(ValueError, match="empty"):
        backend.draw_drafts(residuals(3), [0], [1], [Draw(0.0, 1, 1)])
    assert backend.draw(residuals(3), [0], [1], [Draw(0.0, 1, 1)]) == [TWINS[0]]

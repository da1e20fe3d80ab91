"""What every backend promises: its heads and draws, and the rows that it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from engine.backends.protocol import Backend, Draw, Row, Sweep
from engine.sampling.drawing import draw, top_probability
from support.backend_variants import NATIVE, REFERENCE, Precision, each_precision
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, sequence_logits, token_rows

CONFIG = tiny_config(num_layers=3)
TOKENS = np.random.default_rng(6).integers(0, CONFIG.vocab_size, 20).tolist()

pytestmark = each_precision(REFERENCE[0], *NATIVE[::2])


@pytest.fixture(scope="module")
def checkpoint() -> MemoryCheckpoint:
    return MemoryCheckpoint(CONFIG)


@pytest.fixture
def backend(checkpoint: MemoryCheckpoint, precision: Precision) -> Iterator[Backend]:
    backend = precision.make(checkpoint, draft_vocab_size=40, always_draft_ids=(95, 70))
    yield backend
    backend.close()


def read(backend: Backend, depth: int = 2) -> Any:
    """Residuals of TOKENS."""
    backend.allocate(2, 16, 0)
    return backend.sweep(Sweep(token_rows(TOKENS, 0, 20, depth), {0: [1, 0]}))


def test_says_what_it_is(backend: Backend, precision: Precision) -> None:
    assert (backend.name, backend.head_dtype) == (precision.backend, precision.head_dtype)
    assert backend.config is CONFIG


@pytest.mark.parametrize("exit_norm", [True, False])
@pytest.mark.parametrize(("size", "always"), [(40, (95, 3, 70)), (500, ()), (0, (17,))])
@pytest.mark.parametrize("step", [None, 7])
def test_draft_head_scores_the_draft_ids(
    precision: Precision, step: int | None, size: int, always: tuple[int, ...], exit_norm: bool
) -> None:
    checkpoint = MemoryCheckpoint(tiny_config(num_layers=3, exit_norm=exit_norm))
    ids = range(CONFIG.vocab_size)
    ranking = None if step is None else sorted(ids, key=lambda index: index * step % len(ids))
    backend = precision.make(
        checkpoint, draft_vocab_size=size, always_draft_ids=always, draft_ranking=ranking
    )
    expected_ids = sorted({*(ranking or ids)[:size], *always})
    assert backend.draft_ids.tolist() == expected_ids
    assert backend.draft_ids.dtype == np.int64
    residuals = read(backend)
    rows = [19, 0, 7]
    full = backend.head(residuals, rows, [2] * 3)
    draft = backend.draft_head(residuals, rows, [2] * 3)
    assert full.shape == (3, CONFIG.vocab_size)
    if precision.backend == "cpu":
        assert_same_bits(draft, full[:, backend.draft_ids])
    np.testing.assert_allclose(draft, full[:, backend.draft_ids], rtol=1e-5, atol=1e-5)
    for index, row in enumerate(rows):
        alone = backend.draft_head(residuals, [row], [2])
        assert_same_bits(draft[index : index + 1], alone)


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 0.8, 100.0])
def test_draws_are_from_the_heads(backend: Backend, temperature: float) -> None:
    residuals = read(backend)
    rows = [19, 0, 7, 7]
    depths = [2] * len(rows)
    draws = [Draw(temperature, 2**64 - 1 - i, 3 * i + 1) for i in range(len(rows))]
    full, draft = backend.head(residuals, rows, depths), backend.draft_head(residuals, rows, depths)
    assert list(backend.draw(residuals, rows, depths, draws)) == [
        draw(logits, *pick) for logits, pick in zip(full, draws, strict=True)
    ]
    tokens, confidences = backend.draw_drafts(residuals, rows, depths, draws)
    assert list(tokens) == [
        draw(logits, *pick, backend.draft_ids) for logits, pick in zip(draft, draws, strict=True)
    ]
    expected = [top_probability(logits) for logits in draft]
    np.testing.assert_allclose(confidences, expected, rtol=1e-6)


def test_nothing_asked_nothing_answered(backend: Backend) -> None:
    assert backend.sweep(Sweep([], {})).shape == (0, CONFIG.hidden_size)
    residuals = read(backend)
    assert backend.head(residuals, [], []).shape == (0, CONFIG.vocab_size)
    assert backend.draft_head(residuals, [], []).shape == (0, 42)
    assert list(backend.draw(residuals, [], [], [])) == []
    assert [list(part) for part in backend.draw_drafts(residuals, [], [], [])] == [[], []]


def test_tied_models_read_the_head_off_the_embedding(precision: Precision) -> None:
    tied = MemoryCheckpoint(tiny_config(num_layers=3, tie_word_embeddings=True))
    with pytest.raises(KeyError):
        tied.tensor("lm_head.weight")
    untied = MemoryCheckpoint.of(
        CONFIG,
        tied._linears,
        {**tied._tensors, "lm_head.weight": tied.tensor("embed_tokens.weight")},
    )
    assert_same_bits(
        sequence_logits(precision.make(tied), TOKENS, 3),
        sequence_logits(precision.make(untied), TOKENS, 3),
    )


TABLES = {0: [0, 1], 1: [2], 2: [], 3: [-1], 4: [2**70], 5: [2**32]}
REFUSED = [
    (Row(0, 0, 0, 4, 1), "layers"),
    (Row(0, 0, -1, 3, 1), "layers"),
    (Row(0, 0, 2, 2, None, source_state=0), "layers"),
    (Row(0, 0, 0, 3, None), "either"),
    (Row(0, 0, 0, 3, 1, source_state=0), "either"),
    (Row(0, 0, 1, 3, 1), "starts at layer 0"),
    (Row(0, 0, 0, 3, 96), "vocabulary"),
    (Row(0, 0, 0, 3, -1), "vocabulary"),
    (Row(0, 128, 0, 3, 1), "context"),
    (Row(0, -1, 0, 3, 1), "context"),
    (Row(0, 8, 0, 3, 1), "no block"),
    (Row(2, 0, 0, 3, 1), "no block"),
    (Row(1, 0, 0, 3, 1), "not allocated"),
    (Row(3, 0, 0, 3, 1), "not allocated"),
    (Row(0, 0, 0, 3, 1, target_state=2), "exit state"),
    (Row(0, 0, 0, 3, 1, target_state=-1), "exit state"),
    (Row(0, 0, 1, 3, None, source_state=-1), "exit state"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_rows_that_the_protocol_forbids_are_refused(
    backend: Backend, row: Row, message: str
) -> None:
    backend.allocate(2, 4, 2)
    with pytest.raises(ValueError, match=message):
        backend.sweep(Sweep([Row(0, 1, 0, 3, 1), row], TABLES))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        *((Row(0, 0, 0, 3, 1)._replace(position=number), ValueError) for number in (2**32, 2**70)),
        *((Row(0, 0, 0, 3, 1)._replace(token=number), ValueError) for number in (2**32, -(2**70))),
        *((Row(0, 0, 0, 3, 1)._replace(last=number), ValueError) for number in (2**32 + 3, 2**70)),
        (Row(0, 0, 0, 3, 1, target_state=2**32), ValueError),
        (Row(4, 0, 0, 3, 1), (ValueError, OverflowError)),
        (Row(5, 0, 0, 3, 1), ValueError),
        (Row(9, 0, 0, 3, 1), KeyError),
    ],
)
def test_numbers_of_any_size_are_refused(
    backend: Backend, row: Row, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    backend.allocate(2, 4, 2)
    with pytest.raises(error):
        backend.sweep(Sweep([row], TABLES))


@pytest.mark.parametrize("tables", [{0: []}, {0: [0]}])
def test_nothing_fits_before_memory_is_allocated(
    backend: Backend, tables: Mapping[int, Sequence[int]]
) -> None:
    with pytest.raises(ValueError):
        backend.sweep(Sweep([Row(0, 0, 0, 3, 1)], tables))


def test_a_refused_sweep_writes_nothing(backend: Backend, checkpoint: MemoryCheckpoint) -> None:
    """Not even for the rows before the wrong one."""
    expected = np.asarray(read(backend, 3))
    backend.allocate(2, 16, 1)
    backend.sweep(Sweep(token_rows(TOKENS, 0, 19, 3), {0: [1, 0]}))
    wrong = [Row(0, p, 0, 3, (TOKENS[p] + 1) % 96) for p in range(19)]
    with pytest.raises(ValueError):
        backend.sweep(Sweep([*wrong, Row(0, 19, 0, 3, 96)], {0: [1, 0]}))
    last = backend.sweep(Sweep(token_rows(TOKENS, 19, 20, 3), {0: [1, 0]}))
    assert_same_bits(np.asarray(last), expected[19:])


def test_heads_want_a_depth_and_a_draw_for_each_row(backend: Backend) -> None:
    residuals = read(backend)
    for head in (backend.head, backend.draft_head):
        with pytest.raises(ValueError, match="depths"):
            head(residuals, [0, 1], [3])
    for pick in (backend.draw, backend.draw_drafts):
        with pytest.raises(ValueError):
            pick(residuals, [0, 1], [3, 3], [Draw(0.0, 1, 1)])

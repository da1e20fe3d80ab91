"""The reference backend's own promises: heads, K/V precision, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.backends.protocol import Backend, Draw, Row, Sweep
from engine.backends.reference import ReferenceBackend
from engine.errors import ConfigError
from engine.sampling.drawing import draw, top_probability
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, sequence_logits, token_rows

CONFIG = tiny_config(num_layers=3)
TOKENS = np.random.default_rng(6).integers(0, CONFIG.vocab_size, 20).tolist()


@pytest.fixture(scope="module")
def checkpoint() -> MemoryCheckpoint:
    return MemoryCheckpoint(CONFIG)


def test_implements_the_protocol(checkpoint: MemoryCheckpoint) -> None:
    backend: Backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    assert (backend.name, backend.head_dtype) == ("reference", "fp32")
    assert backend.config is CONFIG


@pytest.mark.parametrize("exit_norm", [True, False])
@pytest.mark.parametrize(("size", "always"), [(40, (95, 3, 70)), (500, ())])
def test_draft_head_scores_the_draft_ids(
    size: int, always: tuple[int, ...], exit_norm: bool
) -> None:
    checkpoint = MemoryCheckpoint(tiny_config(num_layers=3, exit_norm=exit_norm))
    backend = ReferenceBackend(checkpoint, draft_vocab_size=size, always_draft_ids=always)
    expected_ids = sorted({*range(min(size, CONFIG.vocab_size)), *always})
    assert backend.draft_ids.tolist() == expected_ids
    assert backend.draft_ids.dtype == np.int64
    backend.allocate(2, 16, 0)
    residuals = backend.sweep(Sweep(token_rows(TOKENS, 0, 20, 2), {0: [1, 0]}))
    rows = [19, 0, 7]
    full = backend.head(residuals, rows, [2] * 3)
    draft = backend.draft_head(residuals, rows, [2] * 3)
    assert full.shape == (3, CONFIG.vocab_size)
    np.testing.assert_allclose(draft, full[:, backend.draft_ids], rtol=1e-5, atol=1e-5)
    for index, row in enumerate(rows):
        alone = backend.draft_head(residuals, [row], [2])
        assert_same_bits(draft[index : index + 1], alone)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_draws_are_from_the_heads(checkpoint: MemoryCheckpoint, temperature: float) -> None:
    backend = ReferenceBackend(checkpoint, draft_vocab_size=40, always_draft_ids=(95,))
    backend.allocate(2, 16, 0)
    residuals = backend.sweep(Sweep(token_rows(TOKENS, 0, 20, 2), {0: [1, 0]}))
    rows, depths = [19, 0, 7], [2] * 3
    draws = [Draw(temperature, 2**64 - 1 - row, row + 1) for row in rows]
    full, draft = backend.head(residuals, rows, depths), backend.draft_head(residuals, rows, depths)
    assert list(backend.draw(residuals, rows, depths, draws)) == [
        draw(logits, *pick) for logits, pick in zip(full, draws, strict=True)
    ]
    tokens, confidences = backend.draw_drafts(residuals, rows, depths, draws)
    assert list(tokens) == [
        draw(logits, *pick, backend.draft_ids) for logits, pick in zip(draft, draws, strict=True)
    ]
    assert list(confidences) == [top_probability(logits) for logits in draft]


def test_heads_of_no_rows_are_empty(checkpoint: MemoryCheckpoint) -> None:
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    residuals = torch.zeros(1, CONFIG.hidden_size)
    assert backend.head(residuals, [], []).shape == (0, CONFIG.vocab_size)
    assert backend.draft_head(residuals, [], []).shape == (0, 8)


def test_a_sweep_of_no_rows_is_empty(checkpoint: MemoryCheckpoint) -> None:
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    backend.allocate(1, 1, 0)
    assert backend.sweep(Sweep([], {})).shape == (0, CONFIG.hidden_size)


def test_tied_models_read_the_head_off_the_embedding(checkpoint: MemoryCheckpoint) -> None:
    tied = MemoryCheckpoint(tiny_config(num_layers=3, tie_word_embeddings=True))
    with pytest.raises(KeyError):
        tied.tensor("lm_head.weight")
    untied = MemoryCheckpoint.of(
        CONFIG,
        tied._linears,
        {**tied._tensors, "lm_head.weight": tied.tensor("embed_tokens.weight")},
    )
    assert_same_bits(
        sequence_logits(ReferenceBackend(tied, draft_vocab_size=8), TOKENS, 3),
        sequence_logits(ReferenceBackend(untied, draft_vocab_size=8), TOKENS, 3),
    )


def test_half_precision_cache_is_close_and_rounded_once(checkpoint: MemoryCheckpoint) -> None:
    half = ReferenceBackend(checkpoint, kv_dtype="fp16", draft_vocab_size=8)
    single = ReferenceBackend(checkpoint, draft_vocab_size=8)
    half_logits = sequence_logits(half, TOKENS, 3)
    single_logits = sequence_logits(single, TOKENS, 3)
    assert half._keys.dtype == half._values.dtype == torch.float16
    assert 0 < np.abs(half_logits - single_logits).mean() < 0.02 * single_logits.std()
    # At layer 0 both caches hold the same numbers before rounding.
    for rounded, exact in ((half._keys, single._keys), (half._values, single._values)):
        assert torch.equal(rounded[0], exact[0].half())
    # Even a row's own value is read from the cache: alone at position 0, it is all of attention.
    assert not np.array_equal(half_logits[0], single_logits[0])


def test_threads_sets_torchs_thread_count(checkpoint: MemoryCheckpoint) -> None:
    before = torch.get_num_threads()
    try:
        ReferenceBackend(checkpoint, draft_vocab_size=8, threads=2)
        assert torch.get_num_threads() == 2
        ReferenceBackend(checkpoint, draft_vocab_size=8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_unknown_kv_dtype_is_refused(checkpoint: MemoryCheckpoint) -> None:
    with pytest.raises(ConfigError, match="kv_dtype"):
        ReferenceBackend(checkpoint, kv_dtype="int3", draft_vocab_size=8)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(0, 0, 0, 4, 1), "layers"),
        (Row(0, 0, 2, 2, None, source_state=0), "layers"),
        (Row(0, 0, 0, 3, None), "either"),
        (Row(0, 0, 0, 3, 1, source_state=0), "either"),
        (Row(0, 0, 1, 3, 1), "starts at layer 0"),
        (Row(0, 0, 0, 3, 96), "vocabulary"),
        (Row(0, 128, 0, 3, 1), "context"),
        (Row(0, 8, 0, 3, 1), "no block"),
        (Row(1, 0, 0, 3, 1), "not allocated"),
        (Row(0, 0, 0, 3, 1, target_state=2), "exit state"),
        (Row(0, 0, 1, 3, None, source_state=-1), "exit state"),
    ],
)
def test_rows_that_the_protocol_forbids_are_refused(
    checkpoint: MemoryCheckpoint, row: Row, message: str
) -> None:
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    backend.allocate(2, 4, 2)
    with pytest.raises(ValueError, match=message):
        backend.sweep(Sweep([row], {0: [0, 1], 1: [2]}))


def test_heads_want_a_depth_for_each_row(checkpoint: MemoryCheckpoint) -> None:
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    with pytest.raises(ValueError, match="depths"):
        backend.head(torch.zeros(2, CONFIG.hidden_size), [0, 1], [3])


def test_close_drops_the_cache(checkpoint: MemoryCheckpoint) -> None:
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    backend.allocate(2, 4, 2)
    backend.close()
    with pytest.raises(ValueError):
        backend.sweep(Sweep(token_rows(TOKENS, 0, 1, 3), {0: [0]}))

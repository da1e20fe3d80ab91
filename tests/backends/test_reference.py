"""The reference backend's own promises, beyond those of test_protocol.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.backends.protocol import Backend, Sweep
from engine.backends.reference import ReferenceBackend
from engine.errors import ConfigError
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import sequence_logits, token_rows

CONFIG = tiny_config(num_layers=3)
TOKENS = np.random.default_rng(6).integers(0, CONFIG.vocab_size, 20).tolist()


@pytest.fixture(scope="module")
def checkpoint() -> MemoryCheckpoint:
    return MemoryCheckpoint(CONFIG)


def test_implements_the_protocol(checkpoint: MemoryCheckpoint) -> None:
    backend: Backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    assert (backend.name, backend.head_dtype) == ("reference", "fp32")
    assert backend.config is CONFIG


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


def test_close_drops_the_cache(checkpoint: MemoryCheckpoint) -> None:
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    backend.allocate(2, 4, 2)
    backend.close()
    with pytest.raises(ValueError):
        backend.sweep(Sweep(token_rows(TOKENS, 0, 1, 3), {0: [0]}))

"""What serving is said to take is what the reference backend's tensors do take."""

from __future__ import annotations

import pytest

from engine.backends.memory import serving_memory
from engine.backends.reference import ReferenceBackend
from engine.config import EngineConfig
from support.memory_checkpoint import MemoryCheckpoint, tiny_config


@pytest.mark.parametrize("tied", [False, True])
def test_the_reference_backend_takes_what_is_foretold(tied: bool) -> None:
    model = tiny_config(tie_word_embeddings=tied)
    engine = EngineConfig().resolve(model)
    backend = ReferenceBackend(MemoryCheckpoint(model), draft_vocab_size=8)
    backend.allocate(engine.num_blocks, engine.block_size, 1)
    memory = serving_memory("reference", model, engine, len(backend.draft_ids))
    assert (memory.head_dtype, memory.kv_dtype) == (backend.head_dtype, backend.kv_dtype)
    assert memory.kv == backend._keys.nbytes + backend._values.nbytes
    assert memory.head == (0 if tied else backend._head_VD.nbytes)
    assert memory.draft_head == backend._draft_head_VD.nbytes

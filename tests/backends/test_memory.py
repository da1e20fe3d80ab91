"""What serving is said to take is what the backends do take."""

from __future__ import annotations

from typing import Literal

import pytest

from engine.backends.memory import kv_bytes, serving_memory
from engine.backends.reference import ReferenceBackend
from engine.backends.registry import has_native_kernels
from engine.config import EngineConfig
from engine.model.linears import DenseMatrix, TernaryMatrix
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.variants import VARIANTS


@pytest.mark.parametrize(
    ("variant", "tied"), [("v1", False), ("v1", True), ("v3", False), ("dense", True)]
)
def test_the_reference_backend_takes_what_is_foretold(variant: str, tied: bool) -> None:
    model = tiny_config(tie_word_embeddings=tied, **VARIANTS[variant])
    engine = EngineConfig().resolve(model)
    backend = ReferenceBackend(MemoryCheckpoint(model), draft_vocab_size=8)
    backend.allocate(engine.num_blocks, engine.block_size, 1)
    memory = serving_memory("reference", model, engine, backend.draft_ids.tolist())
    assert (memory.head_dtype, memory.kv_dtype) == (backend.head_dtype, backend.kv_dtype)
    assert memory.kv == backend._keys.nbytes + backend._values.nbytes
    weights = backend._decoder.weights
    held = weights.embedding_VD.nbytes + weights.final_norm._gain_D.nbytes
    for layer in weights.layers:
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
            assert isinstance(linear, TernaryMatrix | DenseMatrix)
            held += (
                linear.weight_OI if isinstance(linear, DenseMatrix) else linear.trits_OI
            ).nbytes
        held += layer.attention_norm._gain_D.nbytes + layer.feed_forward_norm._gain_D.nbytes
    assert memory.weights == held
    assert memory.head == (0 if tied else backend._head_VD.nbytes)
    assert memory.draft_head == backend._draft_head_VD.nbytes


@pytest.mark.skipif(not has_native_kernels(), reason="the kernels are not compiled here")
@pytest.mark.parametrize("kv_dtype", ["fp16", "int8", "fp32"])
def test_the_cpu_backend_caches_what_is_foretold(kv_dtype: Literal["fp16", "int8", "fp32"]) -> None:
    from engine.backends.cpu.backend import CpuBackend

    model = tiny_config(head_dim=16)
    engine = EngineConfig().resolve(model)
    backend = CpuBackend(MemoryCheckpoint(model), draft_vocab_size=8, kv_dtype=kv_dtype, threads=1)
    backend.allocate(1, engine.block_size, 1)
    block = sum(
        len(part) for layer in range(model.num_layers) for part in backend._model.kv_bytes(layer, 0)
    )
    assert kv_bytes(model, kv_dtype, engine.block_size) == block
    if kv_dtype == "fp16":
        memory = serving_memory("cpu", model, engine, backend.draft_ids.tolist())
        assert (memory.head_dtype, memory.kv_dtype) == (backend.head_dtype, kv_dtype)
        assert memory.kv == block * engine.num_blocks


def test_scattered_draft_ids_take_rows_of_their_own() -> None:
    model = tiny_config(vocab_size=4000)
    engine = EngineConfig().resolve(model)
    in_order, scattered = range(1000), range(0, 3000, 3)
    assert serving_memory("cpu", model, engine, [*in_order, 3999]).draft_head == 0
    row_bytes = model.hidden_size + 4
    assert serving_memory("cpu", model, engine, scattered).draft_head == 1000 * row_bytes

"""Matrices that the native kernels take piece by piece, which tiny shapes fit into one of."""

from __future__ import annotations

import numpy as np
import pytest

from engine.backends.protocol import Row, Sweep
from engine.backends.registry import has_native_kernels
from support.checkpoints import tiny_config
from support.memory_checkpoint import MemoryCheckpoint
from support.sequences import assert_same_bits

if not has_native_kernels():
    pytest.skip("the native kernels were not compiled", allow_module_level=True)

from engine.backends.cpu.backend import CpuBackend, instruction_sets

NUM_ROWS = 9
CONFIG = tiny_config(
    num_layers=1, hidden_size=640, num_heads=10, num_kv_heads=2, head_dim=64, intermediate_size=1280
)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("threads", [1, 2])
def test_every_row_count_has_the_scalar_code_s_bits(isa: str, threads: int) -> None:
    checkpoint = MemoryCheckpoint(CONFIG)
    rows = [Row(i, 0, first=0, last=1, token=i) for i in range(NUM_ROWS)]

    def sweep(backend: CpuBackend, count: int) -> np.ndarray:
        return np.array(backend.sweep(Sweep(rows[:count], {i: [i] for i in range(count)})))

    plain = CpuBackend(checkpoint, draft_vocab_size=32, threads=1, isa="scalar")
    plain.allocate(NUM_ROWS, 1, 0)
    expected = sweep(plain, NUM_ROWS)
    backend = CpuBackend(checkpoint, draft_vocab_size=32, threads=threads, isa=isa)
    backend.allocate(NUM_ROWS, 1, 0)
    for count in range(1, NUM_ROWS + 1):
        assert_same_bits(sweep(backend, count), expected[:count])

"""What must hold of blocks, counters and memory contents between any two steps of a core."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.protocol import Draw, Residuals, Sweep
from engine.cache.prefix import Entry
from engine.core import Core
from engine.request import Request
from support.probes import Probe


def assert_blocks_accounted(core: Core) -> None:
    """Free + used = total, every reference is somebody's, and nobody holds too many blocks."""
    cache, pool = core.cache, core.cache._pool
    cache.check_integrity()
    assert pool.num_free + pool.num_used == pool.num_total
    running = [request for request in core.scheduler.requests() if request.slot is not None]
    held = Counter(block for request in running for block in request.blocks)
    counted = {block: pool.num_references(block) for block in range(pool.num_total)}
    assert dict(held) == {block: count for block, count in counted.items() if count}
    slots = [request.slot for request in running if request.slot is not None]
    free_slots = core.scheduler._free_slots
    assert sorted([*slots, *free_slots]) == list(range(len(slots) + len(free_slots)))
    for request in core.scheduler.requests():
        if request.slot is None:
            assert (request.blocks, request.num_full, request.num_shallow) == ([], 0, 0)
            continue
        assert len(request.blocks) == cache.num_blocks_for(request.num_known), request.request_id
        assert request.num_shallow == request.num_full <= request.num_known - 1
        assert not request.drafts


def assert_running_content(core: Core, probe: Probe) -> None:
    """Every running choice's K/V is, bit for bit, what reading its tokens afresh gives."""
    for request in core.scheduler.requests():
        if request.num_full:
            tokens, depth = request.tokens[: request.num_full], request.exit_layer
            size = core.cache.block_size
            actual = probe.kv(request.blocks, size, request.num_full, depth)
            expected, _ = probe.fresh(tokens, depth)
            assert np.array_equal(actual, expected), f"K/V of {request.request_id} differs"


def assert_indexed_content(core: Core, probe: Probe) -> None:
    """Every block of the prefix index holds what its prefix gives, as deep as it says."""
    for block, entry in core.cache._index._by_block.items():
        tokens, size = _prefix(entry), core.cache.block_size
        actual = probe.kv([block], size, size, entry.depth)
        expected, _ = probe.fresh(tokens, entry.depth)
        assert np.array_equal(actual, expected[:, -size:]), f"indexed block {block} differs"


def _prefix(entry: Entry) -> list[int]:
    path = [entry]
    while (parent := path[-1].parent) is not None:
        path.append(parent)
    return [token for step in reversed(path) for token in step.tokens]


class StateChecker:
    """A backend that checks each saved exit state before a sweep starts from it.

    A state must be the residual of reading the sequence's tokens, drafts included, up to its
    position and through the first `row.first` layers.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.backend = probe.backend
        self.name = self.backend.name
        self.config = self.backend.config
        self.head_dtype = self.backend.head_dtype
        self.linear_dtype = self.backend.linear_dtype
        self.kv_dtype = self.backend.kv_dtype
        self.description = self.backend.description
        self.core: Core | None = None
        """Set once it exists: it knows whose block table is whose."""
        self.num_checked = 0

    @property
    def draft_ids(self) -> NDArray[np.int64]:
        return self.backend.draft_ids

    def allocate(self, num_blocks: int, block_size: int, num_states: int) -> None:
        self.backend.allocate(num_blocks, block_size, num_states)

    def sweep(self, sweep: Sweep) -> Residuals:
        for row in sweep.rows:
            if row.source_state is None:
                continue
            request = self._owner(sweep.block_tables, row.sequence)
            tokens = [request.token_at(position) for position in range(row.position + 1)]
            _, expected = self.probe.fresh(tokens, row.first)
            actual = self.probe.state(row.source_state)
            assert np.array_equal(actual, expected), f"the saved state differs: {row}"
            self.num_checked += 1
        return self.backend.sweep(sweep)

    def head(self, residuals: Any, rows: Sequence[int], depths: Sequence[int]) -> Any:
        return self.backend.head(residuals, rows, depths)

    def draft_head(self, residuals: Any, rows: Sequence[int], depths: Sequence[int]) -> Any:
        return self.backend.draft_head(residuals, rows, depths)

    def draw(self, residuals: Any, rows: Any, depths: Any, draws: Sequence[Draw]) -> Any:
        return self.backend.draw(residuals, rows, depths, draws)

    def draw_drafts(self, residuals: Any, rows: Any, depths: Any, draws: Sequence[Draw]) -> Any:
        return self.backend.draw_drafts(residuals, rows, depths, draws)

    def close(self) -> None:
        self.backend.close()

    def _owner(self, tables: Mapping[int, Sequence[int]], sequence: int) -> Request:
        assert self.core is not None
        table = tables[sequence]
        return next(r for r in self.core.scheduler.requests() if r.blocks is table)

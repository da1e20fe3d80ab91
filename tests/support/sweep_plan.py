"""A sweep checked against the backend protocol and laid out as arrays.

Every breach of the protocol is an `AssertionError` that says which row is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engine.backends.protocol import Row, Sweep

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backend has room for."""

    num_layers: int
    vocab_size: int
    max_positions: int
    num_blocks: int
    block_size: int
    num_states: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of layers [first, last) through which the same rows run."""

    first: int
    last: int
    rows: Ints
    """Indices of the active rows."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """R rows, and the history: the cells of all positions that any of them reads, H in all.

    The history holds each sequence's positions 0..its furthest row's, sequence by sequence.
    """

    positions: Ints
    slots: Ints
    """Each row's own cell: block × block size + offset."""
    lasts: Ints
    history_slots: Ints
    history_positions: Ints
    starts: Ints
    """Each row's sequence begins here in the history."""
    ends: Ints
    """Each row reads history[start:end]; its own cell is the last of them."""
    segments: tuple[Segment, ...]


def check_rows(rows: Sequence[Row], limits: Limits) -> None:
    """Assert what can be said of the rows without their block tables."""
    previous: dict[int, int] = {}
    for index, row in enumerate(rows):
        assert 0 <= row.first < row.last <= limits.num_layers, (
            f"row {index}: layers {row.first}..{row.last} are not a range in the model's "
            f"{limits.num_layers}: {row}"
        )
        assert (row.token is None) != (row.source_state is None), (
            f"row {index} needs either a token or a source state: {row}"
        )
        if row.token is not None:
            assert row.first == 0, f"row {index} embeds a token but starts deeper: {row}"
            assert 0 <= row.token < limits.vocab_size, f"row {index}: no such token: {row}"
        assert 0 <= row.position < limits.max_positions, f"row {index}: position beyond: {row}"
        assert row.position > previous.get(row.sequence, -1), (
            f"row {index}: positions of sequence {row.sequence} do not ascend: {row}"
        )
        previous[row.sequence] = row.position
    sources = [row.source_state for row in rows if row.source_state is not None]
    targets = [row.target_state for row in rows if row.target_state is not None]
    for state in (*sources, *targets):
        assert 0 <= state < limits.num_states, f"exit-state slot {state} does not exist"
    states = sources + targets
    assert len(set(states)) == len(states), f"exit-state slots used twice in one sweep: {states}"


def plan_sweep(sweep: Sweep, limits: Limits) -> SweepPlan:
    """Check a sweep's rows and block tables and lay them out."""
    rows, size = sweep.rows, limits.block_size
    check_rows(rows, limits)
    blocks: list[int] = []
    block_starts: list[int] = []
    block_reach: list[int] = []
    start_of: dict[int, int] = {}
    num_cells = 0
    for sequence, reach in {row.sequence: row.position for row in rows}.items():
        used = _used_blocks(sequence, sweep.block_tables, reach, limits)
        start_of[sequence] = num_cells
        num_cells += reach + 1
        blocks.extend(used)
        block_starts.extend(range(0, reach + 1, size))
        block_reach.extend([reach] * len(used))
    offsets = np.arange(size)
    slots_of_blocks = np.asarray(blocks)[:, None] * size + offsets
    positions_of_blocks = np.asarray(block_starts)[:, None] + offsets
    held = positions_of_blocks <= np.asarray(block_reach)[:, None]
    history_slots = slots_of_blocks[held]
    starts = np.asarray([start_of[row.sequence] for row in rows])
    positions = np.asarray([row.position for row in rows])
    ends = starts + positions + 1
    slots = history_slots[ends - 1]
    _check_writes(rows, slots, blocks, size)
    return SweepPlan(
        positions=positions,
        slots=slots,
        lasts=np.asarray([row.last for row in rows]),
        history_slots=history_slots,
        history_positions=positions_of_blocks[held],
        starts=starts,
        ends=ends,
        segments=_segments(rows),
    )


def _used_blocks(
    sequence: int, tables: Mapping[int, Sequence[int]], reach: int, limits: Limits
) -> Sequence[int]:
    """The checked blocks that hold a sequence's positions up to `reach`."""
    assert sequence in tables, f"sequence {sequence} has no block table"
    table, size = tables[sequence], limits.block_size
    assert len(table) * size > reach, (
        f"sequence {sequence}: {len(table)} blocks of {size} do not reach position {reach}"
    )
    assert len(set(table)) == len(table), f"sequence {sequence}: a block twice: {list(table)}"
    assert min(table) >= 0 and max(table) < limits.num_blocks, (
        f"sequence {sequence}: a block outside 0..{limits.num_blocks - 1}: {list(table)}"
    )
    return table[: reach // size + 1]


def _check_writes(rows: Sequence[Row], slots: Ints, blocks: list[int], size: int) -> None:
    """Blocks may be shared for reading only.

    Within a sequence positions ascend and blocks differ, so two rows can write one cell only
    through a block that two sequences hold.
    """
    if len(set(blocks)) == len(blocks):
        return
    shared = {block for block in blocks if blocks.count(block) > 1}
    for row, slot in zip(rows, slots.tolist(), strict=True):
        assert slot // size not in shared, (
            f"block {slot // size} is written while two sequences hold it: {row}"
        )


def _segments(rows: Sequence[Row]) -> tuple[Segment, ...]:
    """Cut the layers where the set of active rows changes."""
    bounds = sorted({row.first for row in rows} | {row.last for row in rows})
    segments = []
    for first, last in pairwise(bounds):
        active = [i for i, row in enumerate(rows) if row.first <= first and last <= row.last]
        if active:
            segments.append(Segment(first, last, np.asarray(active)))
    return tuple(segments)

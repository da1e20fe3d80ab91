"""What a backend must offer: a few large operations, and nothing about requests.

A sweep runs rows through layers. At layer l the rows with first ≤ l < last are active: all of
them write their K/V at that layer, then each attends to the cached positions up to its own.
Everything a row computes depends on that row and the cache alone, bit for bit: not on the
other rows, their number, threads, or where its blocks lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.config import ModelConfig


class Row(NamedTuple):
    """One token position of one sequence, and the layers it runs through in a sweep.

    A row starts either from `token`, which is embedded (then `first` is 0), or from the saved
    residual in `source_state` (then `token` is None).
    """

    sequence: int
    """Key of the sequence's block table in the sweep."""
    position: int
    first: int
    last: int
    """Half-open: the row runs layers first..last−1; its result is the residual after them."""
    token: int | None
    source_state: int | None = None
    """Exit-state slot to start from."""
    target_state: int | None = None
    """Exit-state slot in which to save the row's result for a later sweep."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Rows to run together; rows of one sequence come in ascending position."""

    rows: Sequence[Row]
    block_tables: Mapping[int, Sequence[int]]
    """Sequence → its K/V blocks, in order of position."""


Residuals = Any
"""A backend's own array of R × hidden float32 residuals, one per row of a sweep."""


class Backend(Protocol):
    """One way to run a model: weights, K/V memory and exit states live inside it."""

    name: str
    config: ModelConfig

    def allocate(self, num_blocks: int, block_size: int, num_states: int) -> None:
        """Make room for K/V blocks of `block_size` positions and for saved exit states."""
        ...

    def sweep(self, sweep: Sweep) -> Residuals:
        """Run the rows; returns each row's residual at its `last`, before any norm."""
        ...

    def head(
        self, residuals: Residuals, rows: Sequence[int], depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """Full-head logits, len(rows) × V, of the residuals picked by `rows`.

        `depths[i]` is the exit layer of row i: the final norm applies as the model says.
        """
        ...

    def draft_head(
        self, residuals: Residuals, rows: Sequence[int], depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """The same over the draft vocabulary only: len(rows) × len(draft_ids) logits."""
        ...

    @property
    def draft_ids(self) -> NDArray[np.int64]:
        """The token ids that `draft_head` scores, ascending."""
        ...

    def close(self) -> None:
        """Release threads and memory; the backend is not used afterwards."""
        ...


def draft_vocabulary(
    vocab_size: int, draft_vocab_size: int, always: Sequence[int]
) -> NDArray[np.int64]:
    """The first `draft_vocab_size` ids and those in `always` (EOS, specials), ascending.

    Byte-level BPE ids are in merge order, so low ids are frequent ids.
    """
    ids = set(range(min(vocab_size, draft_vocab_size)))
    ids.update(token_id for token_id in always if 0 <= token_id < vocab_size)
    return np.asarray(sorted(ids), dtype=np.int64)

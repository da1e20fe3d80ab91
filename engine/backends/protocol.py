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


class Draw(NamedTuple):
    """How one row's token is picked: argmax of z + temperature · g over the logits z.

    g is the noise of `engine.sampling.noise`, the sum is in float64. Where the best logit is not
    finite, the pick is the logits' argmax, whatever the temperature.
    """

    temperature: float
    """0: greedy."""
    seed: int
    """Of the choice, modulo 2**64."""
    position: int
    """Absolute position of the token to pick; the noise's counter."""


Residuals = Any
"""A backend's own array of R × hidden float32 residuals, one per row of a sweep."""


class Backend(Protocol):
    """One way to run a model: weights, K/V memory and exit states live inside it."""

    name: str
    config: ModelConfig
    head_dtype: str
    """What the head's weights are held in: `fp32`, `bf16` or `int8`."""
    linear_dtype: str
    """What the linears' weights are held in: `ternary`, or `fp32`, `bf16` or `int8`."""
    kv_dtype: str
    """What K/V is rounded to, once, on writing: `fp32`, `fp16` or `int8`."""

    @property
    def description(self) -> str:
        """How it computes, for people: instruction set or library, and threads."""
        ...

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

    def draw(
        self,
        residuals: Residuals,
        rows: Sequence[int],
        depths: Sequence[int],
        draws: Sequence[Draw],
    ) -> Sequence[int]:
        """Tokens picked from the full head, one per row; ties go to the lowest id.

        Rows and depths are as for `head`, and so are the logits.
        """
        ...

    def draw_drafts(
        self,
        residuals: Residuals,
        rows: Sequence[int],
        depths: Sequence[int],
        draws: Sequence[Draw],
    ) -> tuple[Sequence[int], Sequence[float]]:
        """The same from the draft head, and how sure each row was of its likeliest id.

        That is the id's softmax at temperature 1 over the draft vocabulary's raw logits; 0 where
        the best logit is not finite, and the token means nothing.
        """
        ...

    @property
    def draft_ids(self) -> NDArray[np.int64]:
        """The token ids that `draft_head` scores, ascending."""
        ...

    def close(self) -> None:
        """Release threads and memory; the backend is not used afterwards."""
        ...


def draft_vocabulary(
    vocab_size: int,
    draft_vocab_size: int,
    always: Sequence[int],
    ranking: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """The `draft_vocab_size` most frequent ids and those in `always` (EOS, specials), ascending.

    `ranking` has the frequent ids first; None: the low ids are the frequent ones.
    """
    ranking = range(vocab_size) if ranking is None else ranking
    ids = set(ranking[:draft_vocab_size])
    ids.update(token_id for token_id in always if 0 <= token_id < vocab_size)
    return np.asarray(sorted(ids), dtype=np.int64)

"""Running whole sequences on a backend, and comparing floats by their bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.backends.protocol import Backend, Row, Sweep


def token_rows(
    tokens: Sequence[int], first: int, last: int, depth: int, sequence: int = 0
) -> list[Row]:
    """Rows for positions first..last−1 of a sequence, from the embedding to `depth`."""
    return [Row(sequence, position, 0, depth, tokens[position]) for position in range(first, last)]


def sequence_logits(backend: Backend, tokens: Sequence[int], depth: int) -> NDArray[np.float32]:
    """T × V logits of one sequence at exit `depth`, read in a single sweep; allocates anew."""
    block_size = 16
    num_blocks = -(-len(tokens) // block_size)
    backend.allocate(num_blocks, block_size, 0)
    rows = token_rows(tokens, 0, len(tokens), depth)
    residuals = backend.sweep(Sweep(rows, {0: range(num_blocks)}))
    return backend.head(residuals, range(len(rows)), [depth] * len(rows))


def assert_same_bits(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equality of shape and of every bit; −0 and +0 differ, NaN is an error."""
    assert actual.dtype == expected.dtype == np.float32
    assert not np.isnan(expected).any()
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(
        np.ascontiguousarray(actual).view(np.int32), np.ascontiguousarray(expected).view(np.int32)
    )

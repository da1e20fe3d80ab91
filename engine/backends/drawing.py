"""Drawing for backends that have whole rows of logits at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.backends.protocol import Draw
from engine.sampling.drawing import draw, top_probability


def draw_rows(
    logits_NV: NDArray[np.float32],
    draws: Sequence[Draw],
    ids: NDArray[np.int64] | None = None,
) -> list[int]:
    """The token of each row, whose logits are over `ids` (ascending) or over all V of them."""
    return [
        draw(row_V, pick.temperature, pick.seed, pick.position, ids)
        for row_V, pick in zip(logits_NV, draws, strict=True)
    ]


def draw_draft_rows(
    logits_NV: NDArray[np.float32], draws: Sequence[Draw], ids: NDArray[np.int64]
) -> tuple[list[int], list[float]]:
    """The token of each row, and the probability of the row's likeliest one."""
    return draw_rows(logits_NV, draws, ids), [top_probability(row_V) for row_V in logits_NV]

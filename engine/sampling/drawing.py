"""The pick at the end of sampling: the best of z + T · g.

Where a position needs nothing else, a backend may draw from its own logits: with these functions,
or with arithmetic of its own that comes to the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.sampling import noise

HEAD_WIDTH = 4.0
"""Tokens within so many temperatures of the best get their noise worked out first."""
MIN_PRUNED = 1024
"""Fewer candidates than this are not worth pruning."""


def draw(
    logits: NDArray[np.float32],
    temperature: float,
    seed: int,
    position: int,
    ids: NDArray[np.int64] | None = None,
) -> int:
    """The token picked from one position's logits, over `ids` (ascending) or all V of them.

    Ties go to the lowest id. Where the best logit is not finite, noise has no say, and the argmax
    (numpy's: the first NaN, if there is one) is the answer.
    """
    slot = int(logits.argmax())
    if temperature > 0.0 and math.isfinite(logits[slot]):
        token_ids = np.arange(len(logits)) if ids is None else ids
        slot = noisy_argmax(logits, token_ids, temperature, seed, position)
    return slot if ids is None else int(ids[slot])


def noisy_argmax(
    scores: NDArray[np.floating[Any]],
    token_ids: NDArray[np.int64],
    temperature: float,
    seed: int,
    position: int,
) -> int:
    """The slot with the best scores + temperature · noise, in float64; the best is finite.

    Two logarithms per id would cost more than everything else. So the likeliest tokens, the head,
    go first; one of the tail must then make up at least the distance from the head's edge to the
    best so far, and a comparison of raw words shows that nearly none can.
    """
    words = noise.words(seed, position, token_ids)
    scores = scores.astype(np.float64)
    if len(scores) < MIN_PRUNED:
        return int((scores + temperature * noise.from_words(words)).argmax())
    peak = float(scores.max())
    edge = peak - HEAD_WIDTH * temperature
    head = scores >= edge
    best = float((scores[head] + temperature * noise.from_words(words[head])).max())
    rounding = 1e-9 * (abs(peak) + abs(best) + temperature)  # far more than there is
    needed = noise.lowest_word((best - rounding - edge) / temperature)
    rivals = np.flatnonzero(head | (words >= needed))
    return int(rivals[(scores[rivals] + temperature * noise.from_words(words[rivals])).argmax()])


def top_probability(logits: NDArray[np.float32]) -> float:
    """The softmax, in float64, of the best of some logits; 0 where that is not finite."""
    best = float(logits.max())
    if not math.isfinite(best):
        return 0.0
    return 1.0 / float(np.exp(logits.astype(np.float64) - best).sum())

"""Which tokens stay in the running: top-k, min-p and top-p over one position's scores.

A slot is an index into the scores. Everywhere the order of tokens is by score, best first, and
among equal scores by slot, lowest first; every cut-off respects it, so the outcome is unique.
Scores may be −inf (such a token has no chance) but not NaN, and the best is finite.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.types import SamplingParams

Slots = NDArray[np.int64]
Scores = NDArray[np.floating[Any]]

FIRST_NUCLEUS = 256
NUCLEUS_GROWTH = 8
"""How many of the best are sorted at first, and how this grows until they suffice."""


def largest(scores: Scores, count: int) -> Slots:
    """The slots of the `count` best scores (all, if there are fewer), ascending."""
    surplus = len(scores) - count
    if surplus <= 0:
        return np.arange(len(scores))
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    cut = np.partition(scores, surplus)[surplus]
    slots = np.flatnonzero(scores >= cut)
    if len(slots) > count:
        ties = np.flatnonzero(scores[slots] == cut)
        slots = np.delete(slots, ties[count - len(slots) :])
    return slots


def ranked(scores: Scores, count: int) -> Slots:
    """The slots of the `count` best scores (all, if there are fewer), best first."""
    slots = largest(scores, count)
    return slots[np.argsort(-scores[slots], kind="stable")]


def nucleus(scores: NDArray[np.float64], temperature: float, top_p: float) -> Slots:
    """The fewest best slots whose softmax(scores / temperature) sums to `top_p`, ascending.

    Holtzman et al., "The Curious Case of Neural Text Degeneration" (ICLR 2020). The best slot
    always stays.
    """
    with np.errstate(over="ignore"):  # a tiny temperature: −inf is what it should come to
        weights = np.exp((scores - scores.max()) / temperature)
    wanted = top_p * weights.sum()
    count = FIRST_NUCLEUS
    while True:
        # A longer prefix of the order only appends to these sums, so how far we sort does not
        # show in the result.
        surplus = max(0, len(weights) - count)
        best = np.partition(weights, surplus)[surplus:]
        sums = np.cumsum(np.sort(best)[::-1])
        if sums[-1] >= wanted or surplus == 0:
            return largest(scores, int(np.searchsorted(sums, wanted)) + 1)
        count *= NUCLEUS_GROWTH


def kept(scores: Scores, params: SamplingParams) -> Slots | None:
    """The slots that survive the request's filters, ascending; None: all of them.

    Needs a temperature above 0. Min-p keeps what is at least `min_p` times as likely as the best;
    it and top-k both keep a prefix of the order, so they commute. Top-p comes last and measures
    probability among what these two left, as in vLLM.
    """
    temperature = params.temperature
    slots: Slots | None = None
    if 0 < params.top_k < len(scores):
        slots = largest(scores, params.top_k)
        scores = scores[slots]
    if params.min_p == 0.0 and params.top_p == 1.0:
        return slots
    # Thresholds are float64, and a float32 comparison would round them.
    exact = scores.astype(np.float64)
    if params.min_p > 0.0:
        likely = np.flatnonzero(exact >= exact.max() + temperature * math.log(params.min_p))
        slots = likely if slots is None else slots[likely]
        exact = exact[likely]
    if params.top_p < 1.0:
        likely = nucleus(exact, temperature, params.top_p)
        slots = likely if slots is None else slots[likely]
    return slots

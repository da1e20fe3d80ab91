from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.filters import kept, largest, nucleus, ranked
from engine.types import SamplingParams

# Few distinct values: ties, the hard part, are everywhere.
SCORES = st.lists(st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=1).filter(
    lambda scores: max(scores) > -math.inf
)


def order(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda slot: (-scores[slot], slot))


@given(SCORES, st.integers(0, 12))
def test_largest_and_ranked_follow_the_order(scores: list[float], count: int) -> None:
    for dtype in (np.float32, np.float64):
        array = np.array(scores, dtype=dtype)
        assert ranked(array, count).tolist() == order(scores)[:count]
        assert largest(array, count).tolist() == sorted(order(scores)[:count])


def slow_filters(scores: list[float], params: SamplingParams) -> list[int]:
    """min-p, then top-k, then top-p, by the book."""
    peak = max(scores)
    weights = [math.exp((score - peak) / params.temperature) for score in scores]
    slots = [slot for slot in order(scores) if weights[slot] >= params.min_p * max(weights)]
    if params.top_k:
        slots = slots[: params.top_k]
    if params.top_p == 1.0:
        return sorted(slots)
    total, mass, result = math.fsum(weights[slot] for slot in slots), 0.0, []
    for slot in slots:
        if mass >= params.top_p * total:
            break
        result.append(slot)
        mass += weights[slot]
    return sorted(result)


@settings(max_examples=300)
@given(
    SCORES,
    st.sampled_from([0, 1, 2, 3, 5, 100]),
    st.sampled_from([0.0, 0.0123, 0.1234, 0.789, 1.0]),
    st.sampled_from([0.0567, 0.4321, 0.8765, 0.9876, 1.0]),
    st.sampled_from([0.3, 1.0, 7.0]),
)
def test_kept_matches_the_slow_filters(
    scores: list[float], top_k: int, min_p: float, top_p: float, temperature: float
) -> None:
    params = SamplingParams(top_k=top_k, min_p=min_p, top_p=top_p, temperature=temperature)
    slots = kept(np.array(scores, dtype=np.float32), params)
    actual = list(range(len(scores))) if slots is None else slots.tolist()
    assert actual == slow_filters(scores, params)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.99, 0.99999, 1.0 - 1e-16])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 5.0])
def test_nucleus_of_a_large_vocabulary(top_p: float, spread: float) -> None:
    """However far it had to sort, the nucleus is the one that sorting everything gives."""
    scores = np.random.default_rng(3).normal(scale=spread, size=30_000)
    weights = np.exp(scores - scores.max())
    by_rank = np.argsort(-scores, kind="stable")
    sums = np.cumsum(weights[by_rank])
    size = int((sums < top_p * weights.sum()).sum()) + 1
    assert nucleus(scores, 1.0, top_p).tolist() == sorted(by_rank[:size].tolist())


def test_a_tie_at_the_cut_keeps_the_lowest_ids() -> None:
    flat = np.zeros(10, dtype=np.float32)
    assert kept(flat, SamplingParams(top_k=3)).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert kept(flat, SamplingParams(top_p=0.45)).tolist() == [0, 1, 2, 3, 4]  # type: ignore[union-attr]


def test_the_best_always_stays() -> None:
    scores = np.array([-math.inf, 1.0, 9.0, 3.0], dtype=np.float32)
    for params in (
        SamplingParams(top_p=1e-300),
        SamplingParams(min_p=1.0),
        SamplingParams(top_k=1),
        SamplingParams(top_p=0.999, temperature=1e-308),
        SamplingParams(min_p=1e-9, top_p=0.5, temperature=5e-324),
    ):
        slots = kept(scores, params)
        assert slots is not None
        assert slots.tolist() == [2]


def test_no_filter_keeps_everything() -> None:
    assert kept(np.zeros(5, dtype=np.float32), SamplingParams()) is None
    assert kept(np.zeros(5, dtype=np.float32), SamplingParams(top_k=5)) is None


@pytest.mark.parametrize("temperature", [0.9, 1.1, 1.3, 1.7])
def test_thresholds_are_not_rounded_to_float32(temperature: float) -> None:
    scores = np.random.default_rng(4).normal(scale=3.0, size=3000).astype(np.float32)
    threshold = float(scores.max()) + temperature * math.log(0.01)
    nearest = np.float32(threshold)
    scores[::100] = nearest
    scores[1::100] = np.nextafter(nearest, np.float32(-math.inf))
    scores[2::100] = np.nextafter(nearest, np.float32(math.inf))
    slots = kept(scores, SamplingParams(min_p=0.01, temperature=temperature))
    assert slots is not None
    assert slots.tolist() == [i for i, z in enumerate(scores.tolist()) if z >= threshold]

"""What a backend may draw by itself is what `sample` says where there is nothing else to do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling import SamplingState, sample
from engine.sampling.drawing import draw, top_probability
from engine.types import SamplingParams


def state_of(seed: int = 9, generated: int = 0, **fields: Any) -> SamplingState:
    state = SamplingState(SamplingParams(**fields), (1, 2), (60,), seed)
    for _ in range(generated):
        state.append(1)
    return state


@settings(deadline=None)
@given(
    st.sampled_from([6, 40, 3000]),
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 5000),
    st.booleans(),
)
def test_a_draw_is_the_sample_of_raw_logits(
    size: int, temperature: float, seed: int, position: int, restricted: bool
) -> None:
    rng = np.random.default_rng([size, position])
    logits = np.round(rng.normal(0.0, 3.0, size), 1).astype(np.float32)  # with ties
    ids = np.flatnonzero(rng.random(size) < 0.5) if restricted else None
    if ids is not None:
        ids = np.union1d(ids, [0])
        logits = logits[ids]
    state = state_of(seed, temperature=temperature)
    assert draw(logits, temperature, seed, position, ids) == sample(
        logits, state, position, (), ids
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "logits",
    [[0.0, math.nan, 2.0, math.nan], [0.0, 1.0, math.inf, math.inf], [-math.inf, -math.inf]],
)
def test_where_the_best_logit_is_not_finite(logits: list[float], temperature: float) -> None:
    row = np.array(logits, dtype=np.float32)
    state = state_of(temperature=temperature)
    assert draw(row, temperature, 9, 3) == sample(row, state, 3) == int(row.argmax())
    assert top_probability(row) == 0.0


def test_the_top_probability_is_the_softmax_of_the_best() -> None:
    logits = np.array([1.0, 3.0, -2.0, 3.0], dtype=np.float32)
    weights = np.exp(logits.astype(np.float64))
    assert top_probability(logits) == pytest.approx(weights[1] / weights.sum(), rel=1e-12)
    assert top_probability(logits + np.float32(1e4)) == pytest.approx(top_probability(logits))
    assert top_probability(np.array([-math.inf, 5.0], dtype=np.float32)) == 1.0


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({}, False),
        ({"temperature": 0.0}, False),
        ({"top_k": 5}, True),
        ({"top_p": 0.9}, True),
        ({"min_p": 0.1}, True),
        # Filters never remove the best.
        ({"temperature": 0.0, "top_k": 5, "top_p": 0.5, "min_p": 0.1}, False),
        ({"presence_penalty": 0.1}, True),
        ({"frequency_penalty": -0.1}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"logit_bias": {3: 1.0}}, True),
        ({"temperature": 0.0, "logit_bias": {3: 1.0}}, True),
    ],
)
def test_who_needs_logits(fields: dict[str, Any], needed: bool) -> None:
    assert state_of(**fields).needs_logits(0) is needed


def test_min_tokens_needs_logits_only_while_it_bans() -> None:
    state = state_of(min_tokens=3, generated=1)
    assert [state.needs_logits(num_drafts) for num_drafts in range(4)] == [True, True, False, False]
    nothing_to_ban = SamplingState(SamplingParams(min_tokens=3), (1,), (), 9)
    assert not nothing_to_ban.needs_logits(0)

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling import token_logprobs

LOGITS = st.lists(
    st.one_of(st.floats(-50, 50, width=32), st.sampled_from([-math.inf, 0.0, 1.0])),
    min_size=1,
    max_size=20,
).filter(lambda logits: max(logits) > -math.inf)


@given(LOGITS, st.data())
def test_logprobs_are_the_log_softmax(logits: list[float], data: st.DataObject) -> None:
    token_id = data.draw(st.integers(0, len(logits) - 1))
    num_top = data.draw(st.integers(0, len(logits) + 2))
    array = np.array(logits, dtype=np.float32)
    before = array.tobytes()
    result = token_logprobs(array, token_id, num_top)
    assert array.tobytes() == before

    total = math.log(math.fsum(math.exp(x - max(logits)) for x in logits)) + max(logits)
    assert result.token_id == token_id
    assert math.isclose(result.logprob, logits[token_id] - total, rel_tol=1e-12, abs_tol=1e-12)
    best_first = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert [i for i, _ in result.top] == best_first[:num_top]
    assert result.rank == best_first.index(token_id) + 1
    assert type(result.rank) is int
    for i, logprob in result.top:
        assert type(i) is int
        assert type(logprob) is float
        assert logprob == token_logprobs(array, i, 0).logprob
        if i == token_id:
            assert logprob == result.logprob


def test_probabilities_sum_to_one_and_large_logits_are_stable() -> None:
    logits = np.array([3e38, 3e38, -3e38, -np.inf], dtype=np.float32)
    result = token_logprobs(logits, 3, 4)
    assert result.logprob == -math.inf
    assert result.top[:2] == ((0, -math.log(2)), (1, -math.log(2)))
    assert result.top[3] == (3, -math.inf)

    logits = np.random.default_rng(0).normal(scale=4, size=5000).astype(np.float32)
    everything = token_logprobs(logits, 0, 5000).top
    assert math.isclose(math.fsum(math.exp(lp) for _, lp in everything), 1.0, rel_tol=1e-12)


def test_differences_below_float32_resolution_survive() -> None:
    """log p of a near-certain token is about −1e−9: lost in float32, not in float64."""
    logits = np.array([20.7232658, 0.0], dtype=np.float32)
    assert math.isclose(
        token_logprobs(logits, 0, 0).logprob, -math.log1p(math.exp(-float(logits[0]))), rel_tol=1e-6
    )

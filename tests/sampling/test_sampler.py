from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from engine.sampling import SamplingState, gumbel, sample
from engine.types import SamplingParams

VOCAB_SIZE = 12
EOS = (2, 7)


def make_state(
    params: SamplingParams, prompt: Sequence[int] = (), seed: int = 1, generated: Sequence[int] = ()
) -> SamplingState:
    state = SamplingState(params, prompt, EOS, seed)
    for token_id in generated:
        state.append(token_id)
    return state


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def draws(logits: NDArray[np.float32], num: int = 300, **fields: Any) -> list[int | None]:
    state = make_state(SamplingParams(**fields))
    return [sample(logits, state, position) for position in range(num)]


# --- the whole, against a slow and obvious oracle ---------------------------------------------


def slow_sample(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    completion: Sequence[int],
    position: int,
    seed: int,
    ids: Sequence[int],
) -> int | None:
    """`sample` in plain loops; `completion` holds the drafts too."""
    scores = {}
    for token_id, z in zip(ids, logits, strict=True):
        if token_id in prompt or token_id in completion:
            z = z / params.repetition_penalty if z > 0 else z * params.repetition_penalty
        count = sum(token == token_id for token in completion)
        z -= params.frequency_penalty * count
        if count:
            z -= params.presence_penalty
        z += params.logit_bias.get(token_id, 0.0)
        ends = token_id in EOS or token_id in params.stop_token_ids
        banned = ends and len(completion) < params.min_tokens
        allowed = params.allowed_token_ids is None or token_id in params.allowed_token_ids
        if allowed and not banned and z > -math.inf:
            scores[token_id] = z
    order = sorted(scores, key=lambda token_id: (-scores[token_id], token_id))
    if not order:
        return None
    if params.temperature == 0:
        return order[0]
    weights = {i: math.exp((scores[i] - scores[order[0]]) / params.temperature) for i in order}
    order = [i for i in order if weights[i] >= params.min_p]
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1:
        total = math.fsum(weights[i] for i in order)
        mass, nucleus = 0.0, []
        for i in order:
            if mass >= params.top_p * total:
                break
            nucleus.append(i)
            mass += weights[i]
        order = nucleus
    noise = {i: float(gumbel(seed, position, np.array([i]))[0]) for i in order}
    return max(sorted(order), key=lambda i: scores[i] + params.temperature * noise[i])


TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=8)
LOGIT = st.one_of(st.floats(-8, 8, width=32), st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 2.0]))
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.25, 0.9, 1.0, 4.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 5]),
    top_p=st.sampled_from([1.0, 1.0, 0.3141, 0.7654, 0.9512]),
    min_p=st.sampled_from([0.0, 0.0, 0.0271, 0.3456]),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.6, -0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.6]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.floats(-5, 5), max_size=3),
    min_tokens=st.integers(0, 9),
    stop_token_ids=st.sampled_from([(), (4,), (5, 11)]),
    allowed_token_ids=st.sampled_from([None, None, (3,), (7, 2, 2), (0, 1, 4, 5, 9, 11)]),
)


@settings(max_examples=500, deadline=None)
@given(
    data=st.data(),
    params=PARAMS,
    prompt=TOKENS,
    generated=TOKENS,
    drafts=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=4),
    position=st.integers(0, 1000),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_sample_matches_the_oracle(
    data: st.DataObject,
    params: SamplingParams,
    prompt: list[int],
    generated: list[int],
    drafts: list[int],
    position: int,
    seed: int,
) -> None:
    ids = sorted(data.draw(st.sets(st.integers(0, VOCAB_SIZE - 1)) | st.just(range(VOCAB_SIZE))))
    logits = data.draw(st.lists(LOGIT, min_size=len(ids), max_size=len(ids)))
    array = np.array(logits, dtype=np.float32)
    array.flags.writeable = False
    expected = slow_sample(logits, params, prompt, generated + drafts, position, seed, ids)

    state = make_state(params, prompt, seed, generated)
    id_array = np.array(ids, dtype=np.int64)
    id_array.flags.writeable = False
    given_drafts = tuple(drafts)
    assert sample(array, state, position, given_drafts, id_array) == expected
    # The same when the drafts have become history, and when asked again.
    settled = make_state(params, prompt, seed, generated + drafts)
    assert sample(array, settled, position, (), id_array) == expected
    assert sample(array, state, position, given_drafts, id_array) == expected
    if len(ids) == VOCAB_SIZE:
        allowed = sorted(params.allowed_token_ids or ids)
        fallback = max(allowed, key=lambda token_id: (array[token_id], -token_id))
        answer = sample(array, state, position, given_drafts)
        assert answer == (fallback if expected is None else expected)


@pytest.mark.parametrize("temperature", [1e-308, 1e-12, 0.1, 0.7, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 3.0, 1e5])
def test_pruning_never_changes_the_winner(temperature: float, spread: float) -> None:
    """A large vocabulary takes a shortcut; it must find what scoring everything finds."""
    rng = np.random.default_rng(5)
    ids = np.arange(6000)
    state = make_state(SamplingParams(temperature=temperature), seed=3)
    for position in range(40):
        logits = rng.normal(scale=spread, size=6000).astype(np.float32)
        scores = logits.astype(np.float64) + temperature * gumbel(3, position, ids)
        assert sample(logits, state, position) == int(scores.argmax())


def test_the_tail_wins_its_share() -> None:
    """Were the tail pruned too eagerly, a distribution with a heavy tail would show it."""
    logits = np.zeros(4000, dtype=np.float32)
    logits[0] = 7.0
    outcomes = draws(logits, 1500)
    expected = math.exp(7) / (math.exp(7) + 3999)
    assert stats.binomtest(outcomes.count(0), 1500, expected).pvalue > 0.001


# --- the distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_match_the_softmax(temperature: float) -> None:
    logits = floats(0.0, 1.0, -1.0, 2.0, 0.5, -2.0)
    state = make_state(SamplingParams(temperature=temperature), seed=12345)
    num = 10_000
    observed = np.bincount([sample(logits, state, i) or 0 for i in range(num)], minlength=6)
    weights = np.exp(logits.astype(np.float64) / temperature)
    expected = num * weights / weights.sum()
    assert stats.power_divergence(observed, expected, lambda_="log-likelihood").pvalue > 0.01


def test_neighbouring_positions_are_independent() -> None:
    outcomes = [i or 0 for i in draws(floats(0.0, 0.3, -0.3), 10_000)]
    table = np.zeros((3, 3))
    np.add.at(table, (outcomes[:-1], outcomes[1:]), 1)
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    assert stats.chisquare(table.ravel(), expected.ravel(), ddof=4).pvalue > 0.01


def test_filtered_frequencies_are_renormalised() -> None:
    logits = floats(0.0, 1.0, 3.0, 2.0, -1.0)
    observed = np.bincount([i or 0 for i in draws(logits, 5_000, top_k=2)], minlength=5)
    share = 1 / (1 + math.exp(-1))
    assert observed[[0, 1, 4]].sum() == 0
    assert stats.binomtest(int(observed[2]), 5_000, share).pvalue > 0.01


# --- every parameter does something -----------------------------------------------------------

RAMP = floats(3.0, 2.5, 2.0, 1.5, 1.0, 0.5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0.0}, {0}),
        ({"temperature": 0.01}, {0}),
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.6}, {0, 1}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"logit_bias": {4: 100.0}}, {4}),
        ({"logit_bias": {0: -100.0, 1: -100.0}}, {2, 3, 4, 5}),
        ({"min_tokens": 1}, {0, 1, 3, 4, 5}),
        ({"min_tokens": 1, "stop_token_ids": (0, 4)}, {1, 3, 5}),
        ({"allowed_token_ids": (4, 1)}, {1, 4}),
        ({"allowed_token_ids": (5,), "logit_bias": {5: -100.0}}, {5}),
        ({"allowed_token_ids": (0, 3, 4), "top_k": 2}, {0, 3}),
        ({"allowed_token_ids": (0, 2, 4), "min_tokens": 1}, {0, 4}),
        ({"allowed_token_ids": (2,), "min_tokens": 1}, {2}),
        ({"ignore_eos": True}, {0, 1, 2, 3, 4, 5}),
        ({}, {0, 1, 2, 3, 4, 5}),
    ],
)
def test_which_tokens_can_come(fields: dict[str, Any], expected: set[int]) -> None:
    assert set(draws(RAMP, **fields)) == expected


def test_the_seed_and_the_position_matter() -> None:
    runs = [
        [sample(RAMP, make_state(SamplingParams(), seed=seed), first + i) for i in range(50)]
        for seed, first in ((1, 0), (2, 0), (1, 50))
    ]
    assert runs[0] != runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize(
    ("fields", "prompt", "expected"),
    [
        ({}, (), 0),
        ({"presence_penalty": 0.4}, (), 0),
        ({"presence_penalty": 0.6}, (), 1),
        ({"presence_penalty": 0.6}, (1,), 1),
        ({"frequency_penalty": 0.2}, (), 0),
        ({"frequency_penalty": 0.3}, (), 1),
        ({"repetition_penalty": 1.1}, (), 0),
        ({"repetition_penalty": 1.3}, (), 1),
        ({"repetition_penalty": 1.3}, (1,), 0),
    ],
)
@pytest.mark.parametrize("num_drafts", [0, 1, 2])
def test_penalties_on_a_token_that_came_twice(
    fields: dict[str, Any], prompt: Sequence[int], expected: int, num_drafts: int
) -> None:
    """Token 0 leads by 0.5 (3.0 to 2.5); it came twice, as a draft or for good."""
    params = SamplingParams(temperature=0.0, **fields)
    state = make_state(params, prompt, generated=[0] * (2 - num_drafts))
    assert sample(RAMP, state, 9, (0,) * num_drafts) == expected


def test_repetition_penalty_lowers_negative_logits_too() -> None:
    state = make_state(SamplingParams(temperature=0.0, repetition_penalty=2.0), prompt=[0])
    assert sample(floats(-1.0, -1.5, -3.0), state, 1) == 1


def test_a_tiny_repetition_penalty_is_no_warning_and_leaves_the_raw_best() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, min_p=0.1, repetition_penalty=5e-324)
    assert sample(floats(4.0, 1.0, 2.0), make_state(params, prompt=[1]), 1) == 0


def test_the_bias_is_not_diluted_by_the_repetition_penalty() -> None:
    params = SamplingParams(temperature=0.0, repetition_penalty=10.0, logit_bias={0: 5.0})
    assert sample(floats(0.0, 4.0), make_state(params, prompt=[0]), 1) == 0


def test_min_tokens_counts_drafts_and_lets_go_in_time() -> None:
    logits = floats(0.0, 1.0, 5.0)
    params = SamplingParams(temperature=0.0, min_tokens=3)
    assert sample(logits, make_state(params), 0) == 1
    assert sample(logits, make_state(params, generated=[0]), 1, (0,)) == 1
    assert sample(logits, make_state(params, generated=[0]), 1, (0, 0)) == 2
    assert sample(logits, make_state(params, generated=[0, 0, 0]), 3) == 2
    assert sample(logits, make_state(params, prompt=[0] * 9), 9) == 1


# --- ties, restricted ids, nothing allowed ----------------------------------------------------


def test_greedy_ties_go_to_the_lowest_id() -> None:
    state = make_state(SamplingParams(temperature=0.0))
    assert sample(floats(0, 4, 1, 4, 4), state, 0) == 1
    assert sample(floats(4, 1, 4), state, 0, (), np.array([3, 5, 9])) == 3
    penalised = make_state(SamplingParams(temperature=0.0, presence_penalty=1.0), generated=[1])
    assert sample(floats(0, 5, 1, 4, 4), penalised, 0) == 1
    assert sample(floats(0, 5, 4, 4, 4.0), penalised, 0, (1,)) == 1
    assert sample(floats(0, 4, 4, 4, 4), penalised, 0) == 2


@settings(deadline=None)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=40, max_size=40),
    st.sets(st.integers(0, 39), min_size=1),
    st.integers(0, 500),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_restricted_ids_agree_where_they_hold_the_answer(
    logits: list[float], subset: set[int], position: int, temperature: float
) -> None:
    array, ids = np.array(logits, dtype=np.float32), np.array(sorted(subset))
    params = SamplingParams(temperature=temperature, frequency_penalty=0.3, logit_bias={5: 1.0})
    state = make_state(params, generated=[3, 3, 8])
    answer = sample(array, state, position, (1, 3))
    draft = sample(array[ids], state, position, (1, 3), ids)
    assert draft in subset
    if answer in subset:
        assert draft == answer


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_allowed(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, min_tokens=5)
    state = make_state(params)
    assert sample(floats(1.0, 2.0), state, 0, (), np.array(EOS)) is None
    assert sample(floats(-math.inf, 2.0), state, 0, (), np.array([1, 2])) is None
    assert sample(floats(), state, 0, (), np.array([], dtype=np.int64)) is None
    few = make_state(SamplingParams(temperature=temperature, allowed_token_ids=(1, 3)))
    assert sample(floats(1.0, 2.0), few, 0, (), np.array([0, 2])) is None
    assert sample(floats(1.0, 2.0), few, 0, (), np.array([0, 3])) == 3
    # Over the full vocabulary there is always an answer, and always an allowed one.
    assert sample(floats(9.0, -math.inf, 9.0, -math.inf), few, 0) == 1
    assert sample(floats(-math.inf, -math.inf, 2.0), state, 0) == 2
    assert sample(floats(*[-math.inf] * 5), state, 0) == 0
    assert sample(floats(0.0, math.nan, 2.0), make_state(SamplingParams()), 0) == 1
    assert sample(floats(0.0, 1.0, 2.0, math.inf), make_state(SamplingParams()), 0) == 3


def test_logits_and_ids_must_match() -> None:
    with pytest.raises(ValueError, match="3 logits cannot be those of 2 ids"):
        sample(floats(1, 2, 3), make_state(SamplingParams()), 0, (), np.array([0, 1]))


def test_counting_only_where_a_penalty_asks() -> None:
    plain = make_state(SamplingParams(), generated=range(5))
    assert plain.num_generated == 5
    assert not plain.occurrences(())[0].size
    counting = make_state(SamplingParams(presence_penalty=1.0), generated=[4, 4, 6])
    assert dict(zip(*counting.occurrences((6, 1, 6)), strict=True)) == {4: 2, 6: 3, 1: 1}

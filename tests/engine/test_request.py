"""A choice's counters, and the tally of its drafts."""

from __future__ import annotations

from typing import Any

import pytest

from engine.cache.manager import CommitState
from engine.request import Request, RequestStatus, SpeculationTally
from engine.types import FinishReason
from support.engine_parts import make_parts, request_of


def running(prompt: int = 5, num_cached: int = 0, slot: int = 2, **params: Any) -> Request:
    request = request_of(make_parts(), range(1, prompt + 1), **params)
    request.admit([0, 1], CommitState(), num_cached, slot, 7.0)
    return request


def counters(request: Request) -> tuple[int, int, int]:
    return request.num_full, request.num_shallow, request.num_known


def test_a_round_with_rejected_drafts_rewinds_both_counters() -> None:
    request = running(5)
    request.mark_full(5)
    request.deliver(9)
    request.end_round()
    assert counters(request) == (5, 5, 6)
    request.begin_round()
    for draft in (10, 11, 12):
        request.mark_shallow(2)
        request.add_draft(draft)
    assert counters(request) == (5, 8, 6)
    assert [request.token_at(position) for position in range(4, 9)] == [5, 9, 10, 11, 12]
    request.mark_full(4)
    assert counters(request) == (9, 9, 6)
    request.deliver(10)
    request.deliver(20)
    request.end_round()
    assert counters(request) == (7, 7, 8)
    assert request.tokens == [1, 2, 3, 4, 5, 9, 10, 20] and request.drafts == []
    request.begin_round()


def test_accepted_drafts_keep_their_positions() -> None:
    request = running(3)
    request.mark_full(3)
    request.deliver(4)
    request.end_round()
    request.mark_shallow(1)
    request.add_draft(5)
    request.mark_full(2)
    request.deliver(5)
    request.deliver(6)
    request.end_round()
    assert counters(request) == (5, 5, 6)


def test_full_never_passes_what_is_known_and_drafted() -> None:
    request = running(3)
    request.add_draft(1)
    with pytest.raises(AssertionError):
        request.mark_full(5)


def test_a_round_does_not_begin_with_leftovers() -> None:
    request = running(3)
    request.mark_shallow(1)
    with pytest.raises(AssertionError):
        request.begin_round()
    request = running(3)
    request.add_draft(1)
    with pytest.raises(AssertionError):
        request.begin_round()
    request = running(3)
    request.mark_full(3)
    with pytest.raises(AssertionError):
        request.begin_round()


def test_exit_states_belong_to_the_slot() -> None:
    request = running(20, num_cached=4, slot=3)
    assert [request.exit_state(position) for position in (4, 5, 19)] == [48, 49, 63]
    for position in (3, 20):
        with pytest.raises(AssertionError):
            request.exit_state(position)


def test_eviction_forgets_what_was_computed_and_keeps_what_was_delivered() -> None:
    request = running(3, num_cached=0)
    request.mark_full(3)
    request.deliver(9)
    request.end_round()
    request.evict()
    assert counters(request) == (0, 0, 4)
    assert (request.status, request.blocks, request.slot) == (RequestStatus.WAITING, [], None)
    request.admit([3], CommitState(), 3, 0, 99.0)
    assert counters(request) == (3, 3, 4)
    # Queueing and cached tokens are those of the first admission.
    assert (request.times.admission, request.num_cached_tokens) == (7.0, 0)
    assert request.num_evictions == 1


def test_a_choice_ends_once() -> None:
    request = running()
    request.finish(FinishReason.STOP, "x")
    with pytest.raises(AssertionError):
        request.finish(FinishReason.ABORT)
    request.release()
    assert request.status is RequestStatus.FINISHED
    assert (request.finish_reason, request.stop_reason) == (FinishReason.STOP, "x")


def test_at_least_one_known_position_is_computed() -> None:
    request = request_of(make_parts(), (1, 2, 3))
    with pytest.raises(AssertionError):
        request.admit([0], CommitState(), 3, 0, 0.0)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "generated", "expected"),
    [(5, 10, 0, 9), (5, 10, 8, 1), (5, 10, 9, 0), (95, 5, 0, 4), (98, 2, 1, 0), (5, 0, 0, 0)],
)
def test_the_longest_draft_leaves_room_for_the_bonus(
    prompt: int, max_tokens: int, generated: int, expected: int
) -> None:
    request = request_of(make_parts(), [1] * prompt, max_tokens=max_tokens)
    for _ in range(generated):
        request.deliver(2)
    assert request.max_drafts(max_model_len=100) == expected


def test_tokens_that_end_a_choice() -> None:
    request = request_of(make_parts(), stop_token_ids=(9,))
    assert [token for token in range(64) if request.ends_with(token)] == [9]


def test_the_tally_counts_drafts_by_position() -> None:
    tally = SpeculationTally()
    assert tally.freeze() is None
    tally.count(2, num_draft_tokens=3, num_accepted=1)
    tally.count(2, num_draft_tokens=1, num_accepted=1)
    tally.count(2, num_draft_tokens=4, num_accepted=4)
    metrics = tally.freeze()
    assert metrics is not None
    assert (metrics.draft_exit_layer, metrics.num_drafts) == (2, 3)
    assert (metrics.num_draft_tokens, metrics.num_accepted_tokens) == (8, 6)
    assert metrics.accepted_per_position == (3, 1, 1, 1)
    assert metrics.draft_acceptance_rate == 6 / 8
    assert metrics.mean_acceptance_length == 3.0


def test_ngram_drafts_have_no_depth() -> None:
    tally = SpeculationTally()
    tally.count(0, 2, 0)
    metrics = tally.freeze()
    assert metrics is not None and metrics.draft_exit_layer is None
    assert metrics.accepted_per_position == (0, 0)

"""The waiting line by itself: what it counts, refuses and predicts."""

from __future__ import annotations

from typing import Any

import pytest

from engine.metrics import StepStats
from server.admission import MAX_RETRY_AFTER_S, RATE_WINDOW_S, Place, WaitingLine, estimated_tokens
from server.errors import RETRY_AFTER_S, LimitError, QueueFullError


class Line(WaitingLine):
    """A line whose clock stands until it is set."""

    now_s = 1000.0

    def __init__(self, **limits: Any) -> None:
        defaults = {"max_choices": 2, "max_tokens": 100, "max_running": 1}
        super().__init__(**{**defaults, **limits}, clock=lambda: self.now_s)

    def admit(self, *parts: str, num_waiting: int = 0) -> None:
        """The engine took a choice of each, and left `num_waiting` in its own queue."""
        self.observe(StepStats(left_queue=list(parts), num_waiting=num_waiting))

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.num_requests, self.num_choices, self.num_tokens, self.num_running


def retry_after(line: WaitingLine, num_tokens: int = 1, num_choices: int = 1) -> int:
    with pytest.raises(QueueFullError) as caught:
        line.enter({"refused": num_tokens}, num_choices)
    return caught.value.retry_after_s


def test_estimates() -> None:
    assert estimated_tokens("") == 0
    assert estimated_tokens("abcde") == 2
    assert estimated_tokens([5, 6, 7]) == 3


def test_a_request_is_counted_until_it_leaves() -> None:
    line = Line(max_choices=10)
    place = line.enter({"a": 5, "b": 7}, 2)
    assert line.counts == (1, 4, 12, 0)
    place.count_tokens("a", 6)
    assert line.counts == (1, 4, 13, 0)
    line.admit("a")
    assert line.counts == (1, 3, 7, 1)
    line.admit("a", "b", "b")
    assert line.counts == (1, 0, 0, 4)
    place.leave()
    place.leave()
    assert line.counts == (0, 0, 0, 0)


@pytest.mark.parametrize("num_admitted", [0, 1, 2])
def test_leaving_at_any_time_frees_everything(num_admitted: int) -> None:
    line = Line(max_choices=10)
    place = line.enter({"a": 5}, 2)
    line.admit(*["a"] * num_admitted)
    place.leave()
    assert line.counts == (0, 0, 0, 0)
    line.admit("a")  # The engine's word on it came late.
    assert line.counts == (0, 0, 0, 0)


def test_an_end_that_is_told_twice_counts_once() -> None:
    line = Line()
    place = line.enter({"a": 5}, 1)
    line.admit("a", "a", "unknown")
    assert line.counts == (1, 0, 0, 1)
    place.leave()
    assert line.counts == (0, 0, 0, 0)


def test_free_places_are_no_queue() -> None:
    line = Line(max_choices=0, max_running=3)
    for name in "abc":
        line.enter({name: 1}, 1)
    retry_after(line)
    line.admit(*"abc")
    retry_after(line)


def test_so_many_may_wait_and_no_more() -> None:
    line = Line(max_choices=2, max_running=1)
    for name in "abc":
        line.enter({name: 1}, 1)
    retry_after(line)
    line.admit("a", num_waiting=2)
    assert line.num_choices == 2
    retry_after(line)
    line.admit("b", num_waiting=1)
    line.enter({"d": 1}, 1)
    retry_after(line)


def test_an_engine_out_of_blocks_has_no_free_places() -> None:
    line = Line(max_choices=1, max_running=100)
    line.enter({"a": 1}, 1)
    line.admit("a", num_waiting=0)
    line.enter({"b": 1}, 1)
    line.admit(num_waiting=1)
    retry_after(line)


def test_a_request_is_refused_whole() -> None:
    line = Line(max_choices=3, max_running=0)
    line.enter({"a": 1}, 1)
    with pytest.raises(QueueFullError):
        line.enter({"b": 1, "c": 2, "d": 3}, 1)
    assert line.counts == (1, 1, 1, 0)
    line.enter({"b": 1, "c": 2}, 1)


def test_what_can_never_be_taken_is_not_told_to_come_again() -> None:
    with pytest.raises(LimitError, match="at most 3"):
        Line(max_choices=2, max_running=1).enter({"a": 1}, 4)


def test_tokens_are_limited_but_one_prompt_always_fits() -> None:
    line = Line(max_choices=10, max_tokens=100)
    first = line.enter({"a": 500}, 1)
    retry_after(line, num_tokens=1)
    first.leave()
    line.enter({"b": 60}, 1)
    retry_after(line, num_tokens=41)
    line.enter({"c": 40}, 1)


def fill(line: Line, num_admitted: int, every_s: float) -> list[Place]:
    """Admit one after another, then leave the line full."""
    places = []
    for number in range(num_admitted):
        places.append(line.enter({f"r{number}": 10}, 1))
        line.now_s += every_s
        line.admit(f"r{number}", num_waiting=1)
    return [*places, *(line.enter({f"w{number}": 10}, 1) for number in range(2))]


def test_retry_after_follows_the_pace_of_the_line() -> None:
    assert retry_after(_full(0, 1.0)) == RETRY_AFTER_S
    quick, slow = retry_after(_full(10, 0.1)), retry_after(_full(10, 4.0))
    assert quick == 1
    assert 3 <= slow <= 5
    line = _full(4, 10.0)
    assert 5 <= retry_after(line) < MAX_RETRY_AFTER_S
    line.now_s += RATE_WINDOW_S + 1
    assert retry_after(line) == RETRY_AFTER_S


def test_retry_after_is_never_absurd() -> None:
    assert retry_after(_full(1, 1.0, max_tokens=1000), num_tokens=10**6) <= MAX_RETRY_AFTER_S


def _full(num_admitted: int, every_s: float, **limits: Any) -> Line:
    line = Line(max_choices=2, max_running=0, **limits)
    fill(line, num_admitted, every_s)
    return line

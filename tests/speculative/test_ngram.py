from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.speculative.ngram import NgramIndex

tokens_strategy = st.lists(st.integers(0, 3), max_size=40)
lengths_strategy = st.tuples(st.integers(1, 5), st.integers(1, 5)).map(sorted)


def slow_propose(tokens: list[int], min_n: int, max_n: int, num: int) -> tuple[int, ...]:
    """The definition, by searching the text backwards and growing it with the proposal."""
    for n in range(max_n, min_n - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                text = list(tokens)
                for offset in range(num):
                    text.append(text[end + offset])
                return tuple(text[len(tokens) :])
    return ()


@settings(deadline=None)
@given(tokens_strategy, lengths_strategy, st.integers(0, 20))
@example([1, 1], [1, 1], 3)
@example([0, 1, 0, 1], [2, 4], 5)
def test_agrees_with_the_slow_search(tokens: list[int], lengths: list[int], num: int) -> None:
    min_n, max_n = lengths
    index = NgramIndex(tokens, min_n, max_n)
    assert index.propose(num) == slow_propose(tokens, min_n, max_n, num)
    assert len(index) == len(tokens)


@settings(deadline=None)
@given(tokens_strategy, st.integers(0, 40), lengths_strategy)
def test_growing_equals_building(tokens: list[int], start: int, lengths: list[int]) -> None:
    min_n, max_n = lengths
    growing = NgramIndex(tokens[:start], min_n, max_n)
    for end in range(start, len(tokens)):
        growing.append(tokens[end])
        # Proposing must leave the index as it is.
        assert growing.propose(6) == NgramIndex(tokens[: end + 1], min_n, max_n).propose(6)


def test_the_longest_ending_decides() -> None:
    # (8, 9) was last followed by 3, but after (7, 8, 9) came 1.
    index = NgramIndex([7, 8, 9, 1, 2, 8, 9, 3, 7, 8, 9], 2, 3)
    assert index.propose(2) == (1, 2)


def test_the_most_recent_occurrence_decides() -> None:
    assert NgramIndex([8, 9, 1, 8, 9, 2, 8, 9], 2, 4).propose(1) == (2,)


def test_an_ending_does_not_match_itself() -> None:
    assert NgramIndex([1, 2, 3, 4], 1, 4).propose(3) == ()
    assert NgramIndex([5], 1, 1).propose(3) == ()
    assert NgramIndex([], 1, 3).propose(3) == ()


def test_shorter_matches_than_the_minimum_do_not_count() -> None:
    tokens = [1, 2, 3, 9, 2, 3]
    assert NgramIndex(tokens, 3, 4).propose(2) == ()
    assert NgramIndex(tokens, 2, 4).propose(2) == (9, 2)


def test_repeating_text_is_proposed_on_and_on() -> None:
    assert NgramIndex([1, 2, 3, 1, 2, 3, 1], 2, 4).propose(7) == (2, 3, 1, 2, 3, 1, 2)
    assert NgramIndex([4, 4, 4], 2, 2).propose(5) == (4, 4, 4, 4, 4)


@pytest.mark.parametrize(("min_n", "max_n"), [(0, 3), (3, 2), (-1, -1)])
def test_impossible_lengths(min_n: int, max_n: int) -> None:
    with pytest.raises(ValueError, match="1 <= min_n <= max_n"):
        NgramIndex([], min_n, max_n)

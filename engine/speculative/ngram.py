"""Drafts from the text itself: what followed the last time that its ending occurred.

The idea is prompt lookup decoding (A. Saxena, 2023), here with an index that grows with the
text, so that a proposal never searches it.
"""

from __future__ import annotations

from collections.abc import Iterable


class NgramIndex:
    """Where each run of `min_n` to `max_n` tokens of one sequence last ended.

    Appending a token costs O(Σ n) and a proposal O(Σ n + num), whatever the length of the
    text.
    """

    def __init__(self, tokens: Iterable[int], min_n: int, max_n: int) -> None:
        """Index `tokens`; raises `ValueError` unless 1 ≤ min_n ≤ max_n."""
        if not 1 <= min_n <= max_n:
            raise ValueError(f"n-gram lengths {min_n}..{max_n} must satisfy 1 <= min_n <= max_n")
        self._lengths = range(max_n, min_n - 1, -1)
        self._tokens: list[int] = []
        self._last_end: dict[tuple[int, ...], int] = {}
        """N-gram → end (exclusive) of its last occurrence that another token follows."""
        for token in tokens:
            self.append(token)

    def __len__(self) -> int:
        """Number of tokens in the text."""
        return len(self._tokens)

    def append(self, token: int) -> None:
        """Add the next token of the text."""
        # The old ending enters the index only now that something follows it: so the text's
        # current ending never finds itself.
        for ending in self._endings():
            self._last_end[ending] = len(self._tokens)
        self._tokens.append(token)

    def propose(self, num: int) -> tuple[int, ...]:
        """`num` tokens likely to follow, or none.

        They are what followed the most recent earlier occurrence of the longest ending that
        has one (it may overlap the ending). Where that runs into the end of the text it goes
        on with the proposal itself, as a text that has begun to repeat would.
        """
        for ending in self._endings():
            start = self._last_end.get(ending)
            if start is not None:
                period = len(self._tokens) - start
                return tuple(self._tokens[start + i % period] for i in range(num))
        return ()

    def _endings(self) -> Iterable[tuple[int, ...]]:
        """The text's endings that are indexed, longest first."""
        for n in self._lengths:
            if n <= len(self._tokens):
                yield tuple(self._tokens[-n:])

from __future__ import annotations

import pytest

from engine.sampling import accept, sources
from engine.types import TokenSource

DRAFT, CORRECTED, BONUS, PLAIN = (
    TokenSource.DRAFT,
    TokenSource.CORRECTED,
    TokenSource.BONUS,
    TokenSource.PLAIN,
)


@pytest.mark.parametrize(
    ("drafts", "targets", "expected"),
    [
        ([], [9], 0),
        ([1], [1, 2], 1),
        ([1], [2, 1], 0),
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 9, 3, 4], 1),
        ([1, 2, 3], [9, 2, 3, 4], 0),
        ([1, 2, 3], [1, 2, 9, 3], 2),
    ],
)
def test_accept(drafts: list[int], targets: list[int], expected: int) -> None:
    assert accept(drafts, targets) == expected


@pytest.mark.parametrize(("drafts", "targets"), [([1], [1]), ([], []), ([1], [1, 2, 3])])
def test_accept_needs_one_target_more(drafts: list[int], targets: list[int]) -> None:
    with pytest.raises(ValueError, match="one more target"):
        accept(drafts, targets)


@pytest.mark.parametrize(
    ("num_drafts", "num_accepted", "expected"),
    [
        (0, 0, (PLAIN,)),
        (1, 0, (CORRECTED,)),
        (1, 1, (DRAFT, BONUS)),
        (3, 2, (DRAFT, DRAFT, CORRECTED)),
        (3, 3, (DRAFT, DRAFT, DRAFT, BONUS)),
    ],
)
def test_sources(num_drafts: int, num_accepted: int, expected: tuple[TokenSource, ...]) -> None:
    assert sources(num_drafts, num_accepted) == expected


@pytest.mark.parametrize(("num_drafts", "num_accepted"), [(0, 1), (2, 3), (2, -1)])
def test_impossible_sources(num_drafts: int, num_accepted: int) -> None:
    with pytest.raises(ValueError, match="cannot have been accepted"):
        sources(num_drafts, num_accepted)

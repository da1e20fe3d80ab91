from __future__ import annotations

import pytest

from engine.sampling import sources
from engine.types import TokenSource

DRAFT, CORRECTED, BONUS, PLAIN = (
    TokenSource.DRAFT,
    TokenSource.CORRECTED,
    TokenSource.BONUS,
    TokenSource.PLAIN,
)


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

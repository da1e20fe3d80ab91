"""Which drafts stand, and what each delivered token is called.

Draft and verification sample with the same noise, so acceptance is plain equality: the tokens
are those of decoding without drafts, not merely distributed like them.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import TokenSource


def accept(drafts: Sequence[int], targets: Sequence[int]) -> int:
    """How many drafts stand: the length of the prefix on which drafts and targets agree.

    `targets[i]` is verification's token at the place of `drafts[i]`, sampled with the drafts
    before it taken as given; one more target follows the last draft. The round's tokens are
    `targets[: accepted + 1]`.
    """
    if len(targets) != len(drafts) + 1:
        raise ValueError(f"{len(drafts)} drafts need one more target, not {len(targets)}")
    for num_accepted, (draft, target) in enumerate(zip(drafts, targets, strict=False)):
        if draft != target:
            return num_accepted
    return len(drafts)


def sources(num_drafts: int, num_accepted: int) -> tuple[TokenSource, ...]:
    """The sources of a round's `num_accepted` + 1 tokens."""
    if not 0 <= num_accepted <= num_drafts:
        raise ValueError(f"{num_accepted} of {num_drafts} drafts cannot have been accepted")
    if num_drafts == 0:
        last = TokenSource.PLAIN
    elif num_accepted < num_drafts:
        last = TokenSource.CORRECTED
    else:
        last = TokenSource.BONUS
    return (TokenSource.DRAFT,) * num_accepted + (last,)

"""What each token of a judged round is called.

Draft and verification sample with the same noise, so acceptance is plain equality: the tokens
are those of decoding without drafts, not merely distributed like them.
"""

from __future__ import annotations

from engine.types import TokenSource


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

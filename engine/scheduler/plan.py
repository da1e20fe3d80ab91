"""What the scheduler decides for one round; everything else follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.request import Request


@dataclass(frozen=True, slots=True)
class Work:
    """One choice's part in a round.

    `num_rows` known positions from `num_full` on are computed; a part that reaches the last
    known position yields at least one token. `num_drafts` is how many drafts may be verified on
    top (their slots are reserved); it is 0 unless the choice decodes.
    """

    request: Request
    num_rows: int
    num_drafts: int = 0

    @property
    def is_prefill(self) -> bool:
        """Whether more than the last token is to be read: a prompt, or a preempted text."""
        return self.request.num_pending > 1

    @property
    def reaches_end(self) -> bool:
        """Whether the last known position is among the rows."""
        return self.num_rows == self.request.num_pending


@dataclass(slots=True)
class RoundPlan:
    """The work of one round, decoding choices first, and what made room for it."""

    work: list[Work] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    num_preempted: int = 0

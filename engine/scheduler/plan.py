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
    is_prefill: bool = field(init=False)
    """Whether more than the last token was to be read: a prompt, or a preempted text."""
    reaches_end: bool = field(init=False)
    """Whether the last known position is among the rows."""

    def __post_init__(self) -> None:
        # Decided now: the round itself moves the counters that say so.
        object.__setattr__(self, "is_prefill", self.request.num_pending > 1)
        object.__setattr__(self, "reaches_end", self.num_rows == self.request.num_pending)


@dataclass(slots=True)
class RoundPlan:
    """The work of one round, decoding choices first, and what made room for it."""

    work: list[Work] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    num_preempted: int = 0

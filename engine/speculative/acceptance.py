"""How often drafts are accepted: by sequence, from what all sequences taught, and by confidence.

A draft counts as judged up to its first rejection, which ends it: so acceptance is the chance
that a draft stands, given that those before it did. A draft that was accepted whole says nothing
of what would have followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SEQUENCE_DECAY = 0.98
"""What a judged draft leaves of the weight of a sequence's earlier ones."""
IDLE_DECAY = 0.99
"""What a round without a draft leaves of it: what was bad luck is forgotten, and tried again."""
SERVER_DECAY = 0.999
"""The same for what is known of all sequences."""
SERVER_WEIGHT = 8.0
"""Judged tokens of its own that count as much as what is known of all sequences."""
INITIAL_ACCEPTANCE = 0.7
"""Before anything was judged; LayerSkip models come to about that."""
INITIAL_WEIGHT = 6.0
NUM_BUCKETS = 8
"""Classes of confidence, equally wide."""
MAX_ACCEPTANCE = 0.995

FIRST_WAIT = 8
"""Rounds without drafts before a sequence is looked at again."""
MAX_BACKOFF = 4
"""How much longer than at first a sequence waits after several probes that failed."""


@dataclass(slots=True)
class _Tally:
    """Judged drafts, older ones weighing less."""

    accepted: float = 0.0
    judged: float = 0.0

    def add(self, accepted: int, judged: int, decay: float) -> None:
        self.accepted = self.accepted * decay + accepted
        self.judged = self.judged * decay + judged

    def rate(self, expected: float, weight: float) -> float:
        """The accepted share, `expected` counting like `weight` judged tokens."""
        rate = (self.accepted + weight * expected) / (self.judged + weight)
        return min(MAX_ACCEPTANCE, rate)


@dataclass(slots=True)
class SourceRecord:
    """What is known of all drafts from one source: a draft exit, or n-grams."""

    total: _Tally = field(default_factory=_Tally)
    by_confidence: list[_Tally] = field(
        default_factory=lambda: [_Tally() for _ in range(NUM_BUCKETS)]
    )

    @property
    def acceptance(self) -> float:
        """The chance that a draft of any sequence stands."""
        return self.total.rate(INITIAL_ACCEPTANCE, INITIAL_WEIGHT)

    def acceptance_at(self, confidence: float) -> float:
        """The same for a draft whose head gave its likeliest id this probability."""
        tally = self.by_confidence[_bucket(confidence)]
        return tally.rate(self.acceptance, SERVER_WEIGHT)


@dataclass(slots=True)
class DraftRecord:
    """What is known of one sequence's drafts from one source."""

    tally: _Tally = field(default_factory=_Tally)
    num_idle: int = 0
    """Rounds since its last draft that could have had one."""
    wait: int = FIRST_WAIT
    """Idle rounds after which a probe may be due."""
    backoff: int = 1
    """How much longer than they need probes wait, after some that failed."""

    @property
    def probe_is_due(self) -> bool:
        """Whether it has gone without drafts for long enough."""
        return self.num_idle >= self.wait

    def acceptance(self, source: SourceRecord) -> float:
        """The chance that this sequence's next draft stands."""
        return self.tally.rate(source.acceptance, SERVER_WEIGHT)

    def idle(self, num_rounds: int) -> None:
        """Note rounds without a draft."""
        self.num_idle += num_rounds
        self.tally.add(0, 0, IDLE_DECAY**num_rounds)

    def postpone(self, wait: int) -> None:
        """Wait so many rounds in all before a probe, or longer after failures."""
        self.wait = wait * self.backoff

    def judge(self, num_drafts: int, num_accepted: int) -> None:
        """Note a verified draft. A probe that stood brings the next one sooner."""
        num_judged = min(num_drafts, num_accepted + 1)
        self.tally.add(num_accepted, num_judged, SEQUENCE_DECAY)
        if self.num_idle:
            stood = num_accepted == num_drafts
            self.backoff = 1 if stood else min(MAX_BACKOFF, 2 * self.backoff)
        self.num_idle, self.wait = 0, FIRST_WAIT


def judge(
    record: DraftRecord,
    source: SourceRecord,
    num_drafts: int,
    num_accepted: int,
    confidences: Sequence[float],
) -> None:
    """Note a verified draft of one sequence; `confidences` are the drafts', if they have any."""
    record.judge(num_drafts, num_accepted)
    num_judged = min(num_drafts, num_accepted + 1)
    source.total.add(num_accepted, num_judged, SERVER_DECAY)
    for index, confidence in enumerate(confidences[:num_judged]):
        tally = source.by_confidence[_bucket(confidence)]
        tally.add(int(index < num_accepted), 1, SERVER_DECAY)


def _bucket(confidence: float) -> int:
    return min(NUM_BUCKETS - 1, int(confidence * NUM_BUCKETS))

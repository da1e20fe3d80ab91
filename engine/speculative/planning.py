"""A round's goodput: the tokens that drafts are expected to bring, over its predicted time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.config import MAX_SPECULATIONS
from engine.speculative.acceptance import DraftRecord
from engine.speculative.costs import CostModel, PassShape

NGRAM = 0
"""The draft exit that stands for n-grams."""

LOOK_AHEAD = 2
"""Passes that may fail to pay before no more are considered: a row's price may come in steps."""
FAVOUR = 0.02
"""What another course must bring beyond the planned one, as a share of a token per sequence."""


@dataclass(slots=True)
class Candidate:
    """A sequence that decodes, as its drafts are chosen."""

    depth: int
    """Layers that answer."""
    limit: int
    """Drafts that it may have this round."""
    exact: bool
    """Whether it gets that many; or else as many of them as pay."""
    exits: Sequence[int]
    """Where its drafts may come from: a draft exit, `NGRAM`, both, or nowhere."""
    records: dict[int, DraftRecord]
    """Its record by draft exit; made as needed."""

    def record(self, draft_exit: int) -> DraftRecord:
        """The sequence's record for a source of drafts."""
        record = self.records.get(draft_exit)
        if record is None:
            record = self.records[draft_exit] = DraftRecord()
        return record


class Load(NamedTuple):
    """Rows of a final sweep."""

    depth: int
    row_layers: int
    head_rows: int


NO_LOAD = Load(0, 0, 0)


@dataclass(slots=True)
class Member:
    """A sequence that may get drafts in a round, all of them from one source."""

    candidate: Candidate
    draft_exit: int
    acceptance: float
    calibration: float = 1.0
    """Its acceptance over everybody's."""
    num_drafts: int = 0
    """How many are planned for it."""
    is_probe: bool = False
    """Whether that is to find out, not because it pays."""
    reach: float = 1.0
    """The chance that all that it has drafted so far stands."""
    confidences: list[float] = field(default_factory=list)
    """Of what it has drafted so far."""

    @property
    def takes_passes(self) -> bool:
        """Whether its drafts are run for, or lie in its text."""
        return self.draft_exit != NGRAM

    @property
    def row_layers(self) -> int:
        """Layers that verifying one more draft takes; the others are run by drafting."""
        return self.candidate.depth - self.draft_exit


class Estimate:
    """A round as it is planned so far: its expected tokens and its predicted time."""

    __slots__ = ("_around_s", "_costs", "load", "other_s", "tokens")

    def __init__(self, costs: CostModel, load: Load, other_s: float, around_s: float = 0.0) -> None:
        """Rows without drafts, each of whose head rows brings a token, and time besides sweeps.

        `around_s` is what each draft pass takes of such time.
        """
        self._costs = costs
        self._around_s = around_s
        self.load = load
        self.other_s = other_s
        self.tokens = float(load.head_rows)

    def copy(self) -> Estimate:
        """The same, to go on from."""
        other = Estimate(self._costs, self.load, self.other_s, self._around_s)
        other.tokens = self.tokens
        return other

    def final_s(self, row_layers: int = 0, num_rows: int = 0) -> float:
        """The final sweep's time, with so many more rows."""
        depth, layers, rows = self.load
        return self._costs.predict(PassShape(False, depth, layers + row_layers, rows + num_rows))

    def pass_s(self, fixed: Sequence[Member], more: Sequence[Member]) -> float:
        """What a draft pass for `fixed` takes longer for drafting for `more` too."""
        seconds = self._costs.predict(_pass_shape([*fixed, *more]))
        if fixed:
            return seconds - self._costs.predict(_pass_shape(fixed))
        return seconds + self._around_s

    @property
    def seconds(self) -> float:
        """The round's time."""
        return self.other_s + self.final_s()

    @property
    def ratio(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    def ratio_with(self, gain: float, row_layers: int, num_rows: int, other_s: float) -> float:
        """Tokens per second with so much more of each."""
        seconds = self.other_s + other_s + self.final_s(row_layers, num_rows)
        return (self.tokens + gain) / seconds

    def add(self, gain: float, row_layers: int, num_rows: int, other_s: float = 0.0) -> None:
        """Plan drafts: what they bring, their rows in the final sweep, and their passes' time."""
        depth, layers, rows = self.load
        self.load = Load(depth, layers + row_layers, rows + num_rows)
        self.tokens += gain
        self.other_s += other_s


class Lengths(NamedTuple):
    """How many drafts some sequences are to have, and the round that comes of it."""

    estimate: Estimate
    lengths: list[int]


def add_exact(members: Sequence[Member], estimate: Estimate) -> list[list[Member]]:
    """Plan the drafts that requests have asked for; returns who drafts in which pass."""
    passes: list[list[Member]] = []
    for member in members:
        member.num_drafts = count = member.candidate.limit
        gain = sum(member.acceptance**number for number in range(1, count + 1))
        estimate.add(gain, count * member.row_layers, count)
        if member.takes_passes:
            passes += [[] for _ in range(count - len(passes))]
            for level in range(count):
                passes[level].append(member)
    estimate.other_s += sum(estimate.pass_s((), drafting) for drafting in passes)
    return passes


def lengthen(
    members: Sequence[Member],
    estimate: Estimate,
    passes: Sequence[Sequence[Member]] = (),
    *,
    forced: bool = False,
    least: int = 0,
) -> Lengths:
    """Choose the draft lengths of members that all take passes, or all do not.

    Draft by draft, for those whose drafts are likeliest to stand, while the round's ratio rises.
    `passes` are those that are run in any case. The round that comes of it is `estimate` itself
    where nobody gets a draft. If `forced`, somebody does, though it may not pay, and everybody gets
    `least` as far as the limits go.
    """
    if not members:
        return Lengths(estimate, [])
    order = sorted(range(len(members)), key=lambda place: -members[place].acceptance)
    lengths = [0] * len(members)
    best, best_ratio, best_lengths = estimate, 0.0 if forced or least else estimate.ratio, lengths
    planned, num_misses = estimate.copy(), 0
    for level in range(MAX_SPECULATIONS):
        order = [place for place in order if members[place].candidate.limit > level]
        if not order or num_misses == LOOK_AHEAD:
            break
        fixed = passes[level] if level < len(passes) else ()
        group = [members[place] for place in order]
        few = [len(group)] if level < least else sizes(len(group))
        size, ratio = _add_drafts(group, few, fixed, level, planned)
        order = order[:size]
        lengths = lengths.copy()
        for place in order:
            lengths[place] = level + 1
        if ratio > best_ratio or level < least:
            best, best_ratio, best_lengths = planned.copy(), ratio, lengths
            num_misses = 0
        else:
            num_misses += 1
    return Lengths(best, best_lengths)


def _add_drafts(
    members: Sequence[Member],
    few: Sequence[int],
    fixed: Sequence[Member],
    level: int,
    planned: Estimate,
) -> tuple[int, float]:
    """Plan one more draft for the first `few` members, as many as make the best of it.

    Returns how many these are, and the ratio that comes of it.
    """
    options: list[tuple[float, int, float, int, float]] = []
    for size in few:
        group = members[:size] if size < len(members) else members
        gain = sum([member.acceptance ** (level + 1) for member in group])
        row_layers = sum([member.row_layers for member in group])
        pass_s = planned.pass_s(fixed, group) if members[0].takes_passes else 0.0
        ratio = planned.ratio_with(gain, row_layers, size, pass_s)
        options.append((ratio, size, gain, row_layers, pass_s))
    ratio, size, gain, row_layers, pass_s = max(options)
    planned.add(gain, row_layers, size, pass_s)
    return size, ratio


def worthwhile(
    fixed: Sequence[Member], free: Sequence[Member], estimate: Estimate, ratio: float
) -> list[Member]:
    """Those of `free` for whom one more draft brings more than its time is worth at `ratio`.

    `fixed` draft on in any case; `estimate` holds the rows so far. What is planned,
    or stopping where nothing is, is favoured: the greatest of several estimates is often lucky.
    """
    now_s = estimate.final_s()

    def value(group: Sequence[Member]) -> float:
        """In tokens."""
        if not group:
            return 0.0
        gain = sum([member.reach * member.acceptance for member in group])
        size, row_layers = len(group), sum([member.row_layers for member in group])
        # Rows come cheaper by the pair where kernels work on pairs.
        one_s = estimate.final_s(row_layers, size) - now_s
        two_s = estimate.final_s(2 * row_layers, 2 * size) - now_s
        return gain - ratio * (estimate.pass_s(fixed, group) + max(0.0, min(one_s, two_s / 2)))

    best = [member for member in free if len(member.confidences) < member.num_drafts]
    best_value = value(best) + FAVOUR * estimate.tokens
    free = sorted(free, key=lambda member: -member.reach * member.acceptance)
    for size in (0, *sizes(len(free))):
        if (other := value(free[:size])) > best_value:
            best, best_value = free[:size], other
    return best


def value_alone(member: Member, estimate: Estimate, ratio: float, num_sharing: int) -> float:
    """What a sequence's drafts bring beyond what their time is worth at `ratio`, in tokens.

    Each of its draft passes is shared by `num_sharing`.
    """
    row_s = estimate.final_s(member.row_layers, 1) - estimate.final_s()
    if member.takes_passes:
        row_s += estimate.pass_s((), [member] * num_sharing) / num_sharing
    price = ratio * max(0.0, row_s)
    value, gain = 0.0, member.acceptance
    for _ in range(member.candidate.limit):
        if gain <= price:
            break
        value += gain - price
        gain *= member.acceptance
    return value


def sizes(count: int) -> list[int]:
    """Numbers of sequences to consider, of so many."""
    if count <= 4:
        return list(range(1, count + 1))
    powers = [1 << power for power in range(count.bit_length())]
    return powers if powers[-1] == count else [*powers, count]


def _pass_shape(members: Sequence[Member]) -> PassShape:
    exits = [member.draft_exit for member in members]
    return PassShape(True, max(exits), sum(exits), len(exits))

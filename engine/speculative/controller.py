"""How long everybody's drafts are: the round's expected tokens over its predicted time.

One round serves all: somebody's draft passes delay everyone, and rows share what a sweep costs.
So drafts are chosen for the round as a whole, pass by pass, while the ratio of expected tokens
to predicted wall time rises; none at all is an ordinary choice. It is the goodput that TurboSpec
maximises (Liu et al., "Optimizing Speculative Decoding for Serving Large Language Models Using
Goodput", 2024), here with rows that share layers. While drafting, the heads' confidences say more
than any average, and the same trade decides whether another pass pays.

What is decided here changes when tokens come, never which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.speculative.acceptance import (
    FIRST_WAIT,
    MAX_ACCEPTANCE,
    SourceRecord,
    judge,
)
from engine.speculative.costs import CostModel, PassShape, RunningMedian
from engine.speculative.planning import (
    NGRAM,
    NO_LOAD,
    Candidate,
    Estimate,
    Lengths,
    Load,
    Member,
    add_exact,
    lengthen,
    value_alone,
    worthwhile,
)

PROBE_SHARE = 0.003
"""Share of the time that may go into finding out how drafts of idle sequences would fare."""
NEAR_SHARE = 0.0013
"""The same for rounds with drafts where none seems best, and the other way round,"""
FAR_SHARE = 0.001
"""and for rounds with more drafts than seem best."""
PLAN_ROUNDS = 4
"""Rounds that a plan serves while the same sequences go on: planning takes time as well."""
IDLE_PLAN_ROUNDS = 16
"""The same for a plan without drafts, from which little is learned meanwhile."""
PLANNING_SHARE = 0.005
"""Share of the time that may go into planning: where rounds are short, a plan serves more,"""
MAX_PLAN_ROUNDS = 64
"""up to so many."""
MIN_TRIES = 3
"""Such tries that are made whatever they seem to cost: one measurement may be wrong."""
LAST_WAIT = 64
"""The longest wait for a try that costs much, in rounds,"""
LAST_WAIT_S = 0.25
"""or in seconds, whichever is longer: machines change by the clock, however short rounds are."""
LAST_PROBE_WAIT = 256
"""The longest wait for a probe, in rounds: every idle sequence makes its own."""


class Choice(NamedTuple):
    """What a sequence gets in a round."""

    num_drafts: int
    """At most; exactly so many where the request has said so."""
    draft_exit: int
    """The layer after which drafts are read off, or `NGRAM`."""


NOTHING = Choice(0, NGRAM)


class DraftRound:
    """One round's drafts: what was chosen, and how they go. Sequences go by their index."""

    def __init__(
        self,
        choices: list[Choice],
        members: dict[int, Member],
        sources: dict[int, SourceRecord],
        estimate: Estimate,
        ratio: float,
        *,
        is_try: bool = False,
    ) -> None:
        """`estimate` holds the rows that are there before any pass, `ratio` is to be beaten.

        Of a try all planned drafts are made, whatever they seem to be worth.
        """
        self.choices = choices
        self._members = members
        self._sources = sources
        self._estimate = estimate
        self._ratio = ratio
        self._is_try = is_try

    def note(self, index: int, confidence: float) -> None:
        """A pass drafted a token, its head being so sure of its likeliest id."""
        member = self._members[index]
        member.confidences.append(confidence)
        chance = self._sources[member.draft_exit].acceptance_at(confidence)
        member.reach *= min(MAX_ACCEPTANCE, chance * member.calibration)
        self._estimate.add(0.0, member.row_layers, 1)

    def proceed(self, active: Sequence[int]) -> list[int]:
        """Those of the drafting sequences that should have another pass."""
        members = self._members
        fixed: list[Member] = []
        free: list[Member] = []
        for member in (members[index] for index in active):
            is_planned = self._is_try and len(member.confidences) < member.num_drafts
            (fixed if member.candidate.exact or is_planned else free).append(member)
        if not free:
            return list(active)
        chosen = worthwhile(fixed, free, self._estimate, self._ratio)
        kept = {id(member) for member in (*fixed, *chosen)}
        return [index for index in active if id(members[index]) in kept]

    def judge(self, index: int, num_drafts: int, num_accepted: int) -> None:
        """Verification has spoken on a sequence's drafts."""
        member = self._members[index]
        judge(
            member.candidate.record(member.draft_exit),
            self._sources[member.draft_exit],
            num_drafts,
            num_accepted,
            member.confidences,
        )


@dataclass(slots=True)
class _Plan:
    """A round's drafts, to be repeated."""

    candidates: Sequence[Candidate]
    choices: list[Choice]
    estimate: Estimate
    """The rows that are there before any pass."""
    ratio: float
    lifetime: int
    """Rounds that it serves at most."""

    def suits(self, candidates: Sequence[Candidate]) -> bool:
        """Whether the same sequences stand where they stood, with room for their drafts."""
        if len(candidates) != len(self.candidates):
            return False
        for now, then, choice in zip(candidates, self.candidates, self.choices, strict=True):
            if now.records is not then.records or now.limit < choice.num_drafts:
                return False
            if now.exact or now.exits != then.exits:
                return False
        return True


@dataclass(slots=True)
class _Way:
    """How long another way than the best has not been gone."""

    num_rounds: int = 0
    wait: int = FIRST_WAIT
    num_tries: int = 0
    """Since the engine began."""
    share: float = 1.0
    """The ratio that the latest try was expected to have, over the best one."""
    is_surprised: bool = False
    """Whether it was quicker by half of what it would have needed to be the best itself."""

    def is_due(self) -> bool:
        """Whether it has not been gone for long enough, or did better than expected."""
        return self.num_rounds >= self.wait or self.is_surprised


@dataclass(slots=True)
class _Watch:
    """What a number of sequences seems to do best, and the other ways."""

    drafts: bool = True
    near: _Way = field(default_factory=_Way)
    """Without drafts where the best is with them, and the other way round."""
    far: _Way = field(default_factory=_Way)
    """One draft more for everybody: rows may come cheaper by the dozen."""


class _Expected(NamedTuple):
    """A round as it was decided on."""

    estimate: Estimate
    lasts: bool
    """Whether the next rounds may do the same: nothing in it is only to find out."""


class DraftController:
    """Chooses drafts round by round, and learns from how the rounds went.

    Needs no clock: it is told what passes took.
    """

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self._sources: dict[int, SourceRecord] = {}
        self._round_s = RunningMedian()
        """What is around the passes of a round without drafts."""
        self._drafting_s = RunningMedian()
        """What is around each draft pass."""
        self._planning_s = RunningMedian()
        """What choosing takes, where it is not repeated."""
        self._has_planned = False
        """Whether this round's drafts were chosen anew."""
        self._watches: dict[int, _Watch] = {}
        self._last_ratio: float | None = None
        self._trying: _Way | None = None
        """Where this round goes the other way."""
        self._plan: _Plan | None = None
        self._num_served = 1
        """Rounds that the latest plan has served."""

    def begin_round(self, candidates: Sequence[Candidate], prefill: Load = NO_LOAD) -> DraftRound:
        """Choose everybody's drafts. `prefill` rows share the final sweep.

        Of those, the head rows are of prompts that end in this round.
        """
        plan = self._plan
        self._has_planned = False
        if plan is not None and prefill == NO_LOAD and plan.suits(candidates):
            return self._repeat(plan, candidates)
        self._plan = None
        load = Load(
            max([prefill.depth, *(candidate.depth for candidate in candidates)]),
            prefill.row_layers + sum(candidate.depth for candidate in candidates),
            prefill.head_rows + len(candidates),
        )
        so_far = Estimate(
            self._costs, load, self._round_s.value_or(0.0), self._drafting_s.value_or(0.0)
        )
        members = self._members(candidates, so_far)
        if not members:
            return DraftRound([NOTHING] * len(candidates), members, self._sources, so_far, 0.0)
        self._has_planned = True
        planned = self._choose(list(members.values()), so_far.copy())
        self._last_ratio = planned.estimate.ratio
        choices = [NOTHING] * len(candidates)
        for index, member in members.items():
            choices[index] = _choice(member)
            if not member.takes_passes:
                so_far.add(0.0, member.num_drafts * member.row_layers, member.num_drafts)
        self._num_served = 1
        if planned.lasts and prefill == NO_LOAD:
            lifetime = self._lifetime(choices, planned.estimate.seconds)
            self._plan = _Plan(candidates, choices, so_far.copy(), self._last_ratio, lifetime)
        is_try = self._trying is not None
        return DraftRound(choices, members, self._sources, so_far, self._last_ratio, is_try=is_try)

    def learn(
        self, passes: Iterable[tuple[PassShape, float]], overhead_s: float, planning_s: float
    ) -> None:
        """A round's passes took so many seconds each, and all that is around them so many.

        `planning_s` of it went into `begin_round`.
        """
        passes = list(passes)
        if self._has_planned:
            self._planning_s.add(planning_s)
        overhead_s -= planning_s
        self._compare_try(passes)
        num_drafting = 0
        for shape, duration_s in passes:
            self._costs.observe(shape, duration_s)
            num_drafting += shape.is_draft
        if num_drafting:
            around_drafts_s = overhead_s - self._round_s.value_or(overhead_s)
            self._drafting_s.add(max(0.0, around_drafts_s / num_drafting))
        else:
            self._round_s.add(overhead_s)

    def _repeat(self, plan: _Plan, candidates: Sequence[Candidate]) -> DraftRound:
        """The plan's choices again; no draft counts as planned, so each pass must clearly pay."""
        members = {
            index: self._member(candidates[index], choice.draft_exit)
            for index, choice in enumerate(plan.choices)
            if choice.num_drafts
        }
        self._num_served += 1
        if self._num_served >= plan.lifetime:
            self._plan = None
        return DraftRound(plan.choices, members, self._sources, plan.estimate.copy(), plan.ratio)

    def _lifetime(self, choices: Sequence[Choice], round_s: float) -> int:
        """Rounds that a plan is for."""
        drafts = any(choice.num_drafts for choice in choices)
        enough = self._planning_s.value_or(0.0) / (PLANNING_SHARE * round_s)
        return max(PLAN_ROUNDS if drafts else IDLE_PLAN_ROUNDS, min(int(enough), MAX_PLAN_ROUNDS))

    def _compare_try(self, passes: Sequence[tuple[PassShape, float]]) -> None:
        """If this was a try and quicker than it may be, the next one need not wait."""
        way, self._trying = self._trying, None
        if way is not None:
            predicted_s = sum(self._costs.predict(shape) for shape, _ in passes)
            taken_s = sum(duration_s for _, duration_s in passes)
            way.is_surprised = taken_s < (1.0 + way.share) / 2 * predicted_s

    # --- whose drafts come from where --------------------------------------------------------

    def _members(self, candidates: Sequence[Candidate], estimate: Estimate) -> dict[int, Member]:
        members: dict[int, Member] = {}
        num_sharing = sum(max(c.exits, default=NGRAM) > NGRAM for c in candidates)
        ratio = self._last_ratio or estimate.ratio
        for index, candidate in enumerate(candidates):
            if not candidate.limit or not candidate.exits:
                continue
            options = [self._member(candidate, draft_exit) for draft_exit in candidate.exits]
            members[index] = (
                options[0]
                if len(options) == 1
                else max(options, key=lambda m: value_alone(m, estimate, ratio, num_sharing))
            )
        return members

    def _member(self, candidate: Candidate, draft_exit: int) -> Member:
        source = self._sources.get(draft_exit)
        if source is None:
            source = self._sources[draft_exit] = SourceRecord()
        acceptance = candidate.record(draft_exit).acceptance(source)
        return Member(candidate, draft_exit, acceptance, acceptance / source.acceptance)

    # --- how many ----------------------------------------------------------------------------

    def _choose(self, members: Sequence[Member], planned: Estimate) -> _Expected:
        """Set how many drafts each member gets; returns the round as it is then expected."""
        passes = add_exact([m for m in members if m.candidate.exact], planned)
        free = [member for member in members if not member.candidate.exact]
        if not free:
            return _Expected(planned, False)
        best = _lengthen(free, planned, passes)
        other = self._other_way(free, planned, best, passes)
        for member, num_drafts in zip(free, (other or best).lengths, strict=True):
            member.num_drafts = num_drafts
        if other is not None:
            return _Expected(other.estimate, False)
        probes = self._probe(free, best.estimate, passes[0] if passes else ())
        return _Expected(best.estimate, not probes and not passes)

    def _other_way(
        self,
        free: Sequence[Member],
        without: Estimate,
        best: Lengths,
        passes: Sequence[Sequence[Member]],
    ) -> Lengths | None:
        """With drafts where the best is without, or without, or with more: if that is due.

        What is never done is never measured. The closer the call, the sooner it is due.
        """
        drafts = best.estimate is not without
        watch = self._watches.setdefault(without.load.head_rows, _Watch(drafts))
        if watch.drafts != drafts:
            watch.drafts, watch.near.num_rounds, watch.near.wait = drafts, 0, FIRST_WAIT
        for way in (watch.near, watch.far):
            way.num_rounds += self._num_served
        for way in (watch.near, watch.far):
            if not way.is_due():
                continue
            if way is watch.far:
                other = _lengthen(free, without, passes, least=max(best.lengths) + 1)
            elif drafts:
                other = Lengths(without, [0] * len(free))
            else:
                other = _lengthen(free, without, passes, forced=True)
            share = other.estimate.ratio / best.estimate.ratio
            if way.num_tries >= MIN_TRIES:
                allowed = FAR_SHARE if way is watch.far else NEAR_SHARE
                longest = max(LAST_WAIT, int(LAST_WAIT_S / best.estimate.seconds))
                way.wait = _wait(1.0 - share, allowed, longest)
                if not way.is_due():
                    continue
            way.num_rounds = 0
            way.num_tries += 1
            way.share, way.is_surprised = share, False
            self._trying = way
            return other
        return None

    def _probe(
        self, free: Sequence[Member], planned: Estimate, first_pass: Sequence[Member]
    ) -> bool:
        """Have sources drafted from that were not chosen, where that is due; whether any was."""
        num_idle = sum(member.num_drafts == 0 for member in free)
        for member in free:
            candidate = member.candidate
            for draft_exit in candidate.exits:
                if draft_exit == member.draft_exit and member.num_drafts:
                    continue
                record = candidate.record(draft_exit)
                record.idle(self._num_served)
                if not record.probe_is_due or member.is_probe:
                    continue
                probe = self._member(candidate, draft_exit)
                pass_s = planned.pass_s(first_pass, [probe]) if probe.takes_passes else 0.0
                gone = sum(member.acceptance**n for n in range(1, member.num_drafts + 1))
                ratio = planned.ratio_with(
                    probe.acceptance - gone,
                    probe.row_layers - member.num_drafts * member.row_layers,
                    1 - member.num_drafts,
                    pass_s,
                )
                loss = 1.0 - ratio / planned.ratio
                record.postpone(_wait(loss * max(1, num_idle), PROBE_SHARE, LAST_PROBE_WAIT))
                if record.probe_is_due:
                    member.draft_exit, member.num_drafts, member.is_probe = draft_exit, 1, True
                    member.acceptance, member.calibration = probe.acceptance, probe.calibration
        return any(member.is_probe for member in free)


def _wait(loss: float, share: float, longest: int) -> int:
    """Rounds after which a loss of so much of one round comes to that share of all of them."""
    return max(FIRST_WAIT, min(longest, int(loss / share)))


def _lengthen(
    members: Sequence[Member],
    estimate: Estimate,
    passes: Sequence[Sequence[Member]],
    *,
    forced: bool = False,
    least: int = 0,
) -> Lengths:
    """As `lengthen`, first for those who take passes, then for those who do not."""
    drafting = [member for member in members if member.takes_passes]
    matching = [member for member in members if not member.takes_passes]
    first = lengthen(drafting, estimate, passes, forced=forced, least=least)
    second = lengthen(matching, first.estimate, forced=forced and not drafting)
    lengths = {
        id(m): n
        for m, n in zip((*drafting, *matching), (*first.lengths, *second.lengths), strict=True)
    }
    return Lengths(second.estimate, [lengths[id(member)] for member in members])


def _choice(member: Member) -> Choice:
    """As many drafts as planned; where heads tell how sure they are, more if they are sure."""
    count = member.num_drafts
    if count and member.takes_passes and not member.candidate.exact and not member.is_probe:
        count = min(member.candidate.limit, 2 * count + 2)
    return Choice(count, member.draft_exit)

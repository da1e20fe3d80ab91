"""Rounds of a made-up machine for the draft controller to steer: no model, and a clock of its own.

What passes take is a function of their shape, with noise on top that only the controller sees;
drafts stand with a given chance. Everything comes from one seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.config import MAX_SPECULATIONS
from engine.speculative.acceptance import DraftRecord
from engine.speculative.controller import Choice, DraftController
from engine.speculative.costs import CostFormula, CostModel, PassShape
from engine.speculative.planning import Candidate

NUM_LAYERS, DRAFT_EXIT = 24, 6
DEEP = NUM_LAYERS - DRAFT_EXIT

TrueCost = Callable[[PassShape], float]
"""Seconds that a pass takes on a quiet machine."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Costs as a share of one row through all layers, which takes 10 ms."""

    row: float
    """What a further row adds to the layers."""
    group: int = 1
    """Rows that kernels take together: a row begun costs as much as a full group."""
    head: float = 0.3
    draft_head: float = 0.03
    overhead: float = 0.02
    """Of each pass."""

    def __call__(self, shape: PassShape) -> float:
        rows = shape.head_rows
        shallow = rows if shape.is_draft else (shape.row_layers - DEEP * rows) // DRAFT_EXIT
        body = DRAFT_EXIT * self._layer(shallow)
        if not shape.is_draft:
            body += DEEP * self._layer(rows)
        head = self.draft_head if shape.is_draft else self.head
        head *= 1.0 + self.row / 2 * (rows - 1)
        return 0.01 * (self.overhead + body / NUM_LAYERS + head)

    def _layer(self, rows: int) -> float:
        groups = -(-rows // self.group)
        return 1.0 + self.row * self.group * (groups - 1)


@dataclass(slots=True)
class Changing:
    """A machine that is one and then the other by turns, as its neighbours come and go."""

    first: TrueCost
    second: TrueCost
    stretch: int
    """Rounds that each turn lasts."""
    num_rounds: int = 0

    @property
    def now(self) -> TrueCost:
        """What it is at the moment."""
        turns = self.num_rounds // self.stretch
        return self.second if turns % 2 else self.first

    def __call__(self, shape: PassShape) -> float:
        self.num_rounds += not shape.is_draft
        return self.now(shape)


@dataclass(slots=True)
class Noise:
    """What a shared machine does to times; a factor per pass."""

    rng: random.Random
    spread: float = 0.08
    spike_rate: float = 0.03
    speeds: Sequence[float] = (1.0, 1.0, 1.4, 0.9, 2.0)
    """Factors for whole stretches of time."""
    stretch: int = 400
    """Passes that a stretch lasts."""
    count: int = 0

    def __call__(self) -> float:
        speed = self.speeds[self.count // self.stretch % len(self.speeds)]
        self.count += 1
        factor = math.exp(self.rng.gauss(0.0, self.spread))
        if self.rng.random() < self.spike_rate:
            factor *= self.rng.uniform(1.5, 4.0)
        return speed * factor


@dataclass(slots=True)
class Simulation:
    """Sequences that decode for ever on a machine, their drafts chosen by a controller."""

    machine: TrueCost
    acceptances: Sequence[float]
    """By sequence: the chance that a draft stands."""
    seed: int = 0
    informative: bool = False
    """Whether heads are surer of drafts that stand."""
    around_drafts_s: float = 0.0
    """What the host takes around each draft pass."""
    planning_s: float = 0.0
    """What choosing drafts takes, where it is not repeated."""
    num_plans: int = 0
    """Rounds whose drafts were chosen anew."""
    controller: DraftController = field(
        default_factory=lambda: DraftController(CostModel(CostFormula(8.0, 1.0)))
    )
    rng: random.Random = field(init=False)
    noise: Noise = field(init=False)
    records: list[dict[int, DraftRecord]] = field(init=False)
    choices: list[Choice] = field(default_factory=list)
    """Of the latest round; a plan that is repeated gives the same list again."""
    seconds: float = 0.0
    tokens: float = 0.0
    """Expected of the drafts that were verified: luck is not what is to be judged."""
    lengths: list[int] = field(default_factory=list)
    """Drafts verified, by sequence and round."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.noise = Noise(random.Random(self.seed + 1))
        self.records = [{} for _ in self.acceptances]

    def run(self, num_rounds: int) -> float:
        """So many rounds; returns their tokens per second of a quiet machine."""
        seconds, tokens = self.seconds, self.tokens
        for _ in range(num_rounds):
            self._round()
        return (self.tokens - tokens) / (self.seconds - seconds)

    def _round(self) -> None:
        candidates = [
            Candidate(NUM_LAYERS, MAX_SPECULATIONS, False, (DRAFT_EXIT,), records)
            for records in self.records
        ]
        drafting = self.controller.begin_round(candidates)
        is_new = drafting.choices is not self.choices
        self.choices = drafting.choices
        self.num_plans += is_new
        planning_s = self.planning_s if is_new else 0.0
        drafts: list[list[bool]] = [[] for _ in candidates]
        passes: list[PassShape] = []
        active = [i for i, choice in enumerate(drafting.choices) if choice.num_drafts]
        while active:
            count = len(active)
            passes.append(PassShape(True, DRAFT_EXIT, DRAFT_EXIT * count, count))
            for index in active:
                stands, confidence = self._draft(index)
                drafts[index].append(stands)
                drafting.note(index, confidence)
            limits = drafting.choices
            active = [i for i in active if len(drafts[i]) < limits[i].num_drafts]
            active = drafting.proceed(active)
        num_drafts = sum(map(len, drafts))
        row_layers = NUM_LAYERS * len(drafts) + (NUM_LAYERS - DRAFT_EXIT) * num_drafts
        passes.append(PassShape(False, NUM_LAYERS, row_layers, len(drafts) + num_drafts))
        times = [self.machine(shape) for shape in passes]
        around_s = self.around_drafts_s * sum(shape.is_draft for shape in passes)
        self.seconds += sum(times) + around_s + planning_s
        self.controller.learn(
            [(shape, time * self.noise()) for shape, time in zip(passes, times, strict=True)],
            around_s + planning_s,
            planning_s,
        )
        for index, standing in enumerate(drafts):
            num_accepted = (*standing, False).index(False)
            chance = self.acceptances[index]
            self.tokens += sum(chance**number for number in range(len(standing) + 1))
            self.lengths.append(len(standing))
            if standing:
                drafting.judge(index, len(standing), num_accepted)

    def _draft(self, index: int) -> tuple[bool, float]:
        """Whether a draft will stand, and how sure the head is of it."""
        chance = self.acceptances[index]
        if self.informative:
            # Mostly easy tokens, some hard ones, the given chance on the whole.
            easy = min(1.0, chance / 0.97)
            chance = 0.97 if self.rng.random() < easy else 0.25
        stands = self.rng.random() < chance
        confidence = chance if self.informative else self.rng.random()
        return stands, confidence


def fixed_rate(machine: TrueCost, acceptances: Sequence[float], num_drafts: int) -> float:
    """Tokens per second on a quiet machine when everybody has so many drafts each round."""
    count = len(acceptances)
    tokens = sum(sum(a**number for number in range(num_drafts + 1)) for a in acceptances)
    draft = PassShape(True, DRAFT_EXIT, DRAFT_EXIT * count, count)
    row_layers = count * (NUM_LAYERS + (NUM_LAYERS - DRAFT_EXIT) * num_drafts)
    final = PassShape(False, NUM_LAYERS, row_layers, count * (1 + num_drafts))
    return tokens / (num_drafts * machine(draft) + machine(final))


def best_fixed_rate(machine: TrueCost, acceptances: Sequence[float]) -> tuple[float, int]:
    """The best of these over all draft lengths, none included, and that length."""
    rates = [
        (fixed_rate(machine, acceptances, number), number) for number in range(MAX_SPECULATIONS + 1)
    ]
    return max(rates)

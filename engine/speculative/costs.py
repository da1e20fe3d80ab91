"""What a pass takes: a formula to begin with, fitted to what passes really took.

A pass is a sweep and its head. The formula has a part that every pass pays and a part that each
further row pays; what these weigh is learned from wall time, Python included, for draft passes
and for final sweeps. Where a machine has its steps and corners, a correction of its own for each
kind of pass says how far off the formula is there. So passes that were never seen are predicted
from those that were, and the formula's own constants matter only at first.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.config import ELEMENT_BYTES, ModelConfig

WEIGHT_BYTES = {**ELEMENT_BYTES, "ternary": 0.25}
"""What a weight takes in memory."""
ROW_COST = 0.17
"""What a row adds to a layer, as a share of the first row; ternary AVX2 kernels, 2 to 8 rows."""
HEAD_ROW_COST = 0.08
"""The same for the head, which memory bounds more."""
PASS_COST = 0.5
"""What a pass takes besides, in layers."""

WINDOW = 25
"""Passes of one kind whose median counts: long enough to outvote bursts of slow ones."""
RESOLUTION = 4
"""Kinds of passes per doubling of the rows."""
BORROWING = 0.1
"""Weight of what a neighbouring kind says beside one's own."""
HALF_LIFE = 512
"""Passes after which what was learned of a kind counts half."""
PAUSE = 24
"""Passes without one of a kind after which the machine may have changed,"""
KEPT_OVER_PAUSE = 3
"""and how many of that kind are remembered then."""
LEVEL_WINDOW = 9
"""Passes that say how fast the machine is at the moment."""
MIN_RIVALS = 3
"""Of them, how many must be of other kinds for a pass to say how its kind compares."""
PRIOR_WEIGHT = 0.1
"""Passes that the formula as it stands counts for."""
MIN_PART = 0.02
"""The least that a part of the formula may weigh, whatever the passes seem to say."""
REFRESH_INTERVAL = 64
"""Passes for which worked-out predictions stay, unless a kind's experience has doubled."""


class PassShape(NamedTuple):
    """All that a pass's time is predicted from."""

    is_draft: bool
    depth: int
    """Layers that its deepest row runs to."""
    row_layers: int
    """Layers that its rows run, summed over the rows."""
    head_rows: int
    """Rows that go through the head."""


@dataclass(frozen=True, slots=True)
class CostFormula:
    """A pass's cost in units of one row through one layer: bytes read, and a little per row."""

    head: float
    """The whole head for one row."""
    draft_head: float
    """The draft vocabulary's part of it."""

    @classmethod
    def of(
        cls, model: ModelConfig, head_dtype: str, num_draft_ids: int, linear_dtype: str = "ternary"
    ) -> CostFormula:
        """The formula for a model whose head and linears are held in these dtypes."""
        attention = 2 * model.hidden_size * (model.q_size + model.kv_size)
        layer_size = attention + 3 * model.hidden_size * model.intermediate_size
        layer_bytes = layer_size * WEIGHT_BYTES[linear_dtype]
        per_id = model.hidden_size * WEIGHT_BYTES[head_dtype] / layer_bytes
        return cls(model.vocab_size * per_id, num_draft_ids * per_id)

    def parts(self, shape: PassShape) -> tuple[float, float]:
        """The cost of a pass in which every layer has a row: of its first row, of the others."""
        first = PASS_COST + shape.depth
        others = ROW_COST * (shape.row_layers - shape.depth)
        if shape.head_rows:
            head = self.draft_head if shape.is_draft else self.head
            first += head
            others += head * HEAD_ROW_COST * (shape.head_rows - 1)
        return first, others


class RunningMedian:
    """The lower median of the last few values: slow outliers count least."""

    __slots__ = ("_ordered", "_recent", "_window", "value")

    def __init__(self, window: int = WINDOW) -> None:
        self.value = math.nan
        """The median; not a number before there is a value."""
        self._window = window
        self._recent: deque[float] = deque()
        self._ordered: list[float] = []

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, value: float) -> None:
        """Take in a value, and forget the oldest beyond the window."""
        if len(self._recent) == self._window:
            del self._ordered[bisect_left(self._ordered, self._recent.popleft())]
        self._recent.append(value)
        insort(self._ordered, value)
        self.value = self._ordered[(len(self._ordered) - 1) // 2]

    def forget(self, num_kept: int) -> None:
        """Drop all but the latest values; the median changes with the next one."""
        while len(self._recent) > num_kept:
            del self._ordered[bisect_left(self._ordered, self._recent.popleft())]

    def value_or(self, default: float) -> float:
        """The median, or `default` before there is a value."""
        return self.value if self._ordered else default


def lower_median(values: Sequence[float]) -> float:
    """The median of some values, at least one; of two in the middle the lower."""
    return sorted(values)[(len(values) - 1) // 2]


class _Kind(NamedTuple):
    """Passes that are alike enough to share a correction."""

    is_draft: bool
    depth: int
    octave: int
    """Rows per layer, as a logarithm."""

    @classmethod
    def of(cls, shape: PassShape) -> _Kind:
        octave = round(RESOLUTION * math.log2(max(1.0, shape.row_layers / shape.depth)))
        return cls(shape.is_draft, shape.depth, octave)

    def distance(self, other: _Kind) -> int:
        """How little another kind of the same phase has to say about this one."""
        return abs(self.octave - other.octave) + 2 * (self.depth != other.depth)


class _Seen:
    """What the passes of one kind took, relative to the level of the moment."""

    __slots__ = ("count", "first", "last_seen", "others", "times")

    def __init__(self) -> None:
        self.times = RunningMedian()
        self.count = self.last_seen = 0
        self.first = self.others = 0.0
        """The formula's parts for the latest of them."""

    @property
    def relative(self) -> float:
        """The time that they take, in formula units."""
        return (self.first + self.others) * math.exp(self.times.value)

    def weight(self, now: int) -> float:
        """How much they have to say: little when they are few, or long ago."""
        count = min(self.count, WINDOW)
        return count * count / (count + 2) * 0.5 ** ((now - self.last_seen) / HALF_LIFE)


class CostModel:
    """Predicts wall times of passes, and learns from those of the passes that ran.

    The logarithm of time over formula is split in two: the level, which is the machine's speed of
    the moment and follows quickly, since it says nothing about which passes are worth their time;
    and what is left, of which each kind of passes keeps a median.
    """

    def __init__(self, formula: CostFormula) -> None:
        self._formula = formula
        self._seen: dict[_Kind, _Seen] = {}
        self._num_passes = 0
        self._recent: deque[tuple[_Seen, float]] = deque(maxlen=LEVEL_WINDOW)
        """The latest passes, and their times over the formula's, as logarithms."""
        self._scale = 1.0
        self._weights: dict[bool, tuple[float, float]] = {}
        """Draft or not → what the formula's parts weigh."""
        self._relative: dict[PassShape, float] = {}
        """Worked-out predictions, less the level."""
        self._known: dict[PassShape, tuple[_Seen, float, float]] = {}
        """`_look_up` of shapes that were observed lately."""

    def predict(self, shape: PassShape) -> float:
        """Seconds that a pass will take; before anything was observed, formula units."""
        relative = self._relative.get(shape)
        if relative is None:
            first, others = self._formula.parts(shape)
            kind = _Kind.of(shape)
            relative = self._fitted(shape.is_draft, first, others) * self._correction(kind)
            self._relative[shape] = relative
        return relative * self._scale

    def observe(self, shape: PassShape, duration_s: float) -> None:
        """Learn from a pass that took so long."""
        if duration_s <= 0.0:
            return  # A clock too coarse to tell.
        seen, first, others = self._known.get(shape) or self._look_up(shape)
        value = math.log(duration_s / (first + others))
        if self._num_passes - seen.last_seen > PAUSE:
            seen.times.forget(KEPT_OVER_PAUSE)
        rivals = [past - known.times.value for known, past in self._recent if known is not seen]
        if len(rivals) >= MIN_RIVALS or (rivals and seen.count < MIN_RIVALS):
            seen.times.add(value - lower_median(rivals))
        elif not seen.count:
            seen.times.add(0.0)
        seen.first, seen.others, seen.last_seen = first, others, self._num_passes
        seen.count += 1
        self._recent.append((seen, value))
        self._scale = math.exp(
            lower_median([past - known.times.value for known, past in self._recent])
        )
        self._num_passes += 1
        has_doubled = seen.count & (seen.count - 1) == 0
        if has_doubled or self._num_passes % REFRESH_INTERVAL == 0:
            self._relative.clear()
            self._weights.clear()
            self._known.clear()

    def _look_up(self, shape: PassShape) -> tuple[_Seen, float, float]:
        """What is known of a shape's kind, and the formula's parts for it."""
        seen = self._seen.setdefault(_Kind.of(shape), _Seen())
        self._known[shape] = known = (seen, *self._formula.parts(shape))
        return known

    def _fitted(self, is_draft: bool, first: float, others: float) -> float:
        weights = self._weights.get(is_draft)
        if weights is None:
            weights = self._weights[is_draft] = self._fit(is_draft)
        return weights[0] * first + weights[1] * others

    def _fit(self, is_draft: bool) -> tuple[float, float]:
        """Least squares of relative errors; what little holds the weights at 1 is outvoted soon."""
        ff = oo = PRIOR_WEIGHT
        f = o = PRIOR_WEIGHT
        fo = 0.0
        for kind, seen in self._seen.items():
            if kind.is_draft == is_draft:
                weight, relative = seen.weight(self._num_passes), seen.relative
                first, others = seen.first / relative, seen.others / relative
                ff += weight * first * first
                fo += weight * first * others
                oo += weight * others * others
                f += weight * first
                o += weight * others
        determinant = ff * oo - fo * fo
        return (
            max(MIN_PART, (f * oo - o * fo) / determinant),
            max(MIN_PART, (o * ff - f * fo) / determinant),
        )

    def _correction(self, kind: _Kind) -> float:
        """The factor by which passes of a kind, or of kinds nearby, are off the fitted formula."""
        total, weights = 0.0, 1.0
        for other, seen in self._seen.items():
            if other.is_draft == kind.is_draft:
                weight = seen.weight(self._num_passes) * BORROWING ** kind.distance(other)
                fitted = self._fitted(kind.is_draft, seen.first, seen.others)
                total += weight * math.log(seen.relative / fitted)
                weights += weight
        return math.exp(total / weights)

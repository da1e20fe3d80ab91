"""Find the residual scale at which drafts are accepted as often as was asked for.

Acceptance here is α of E = (1 − α^(γ+1)) / (1 − α), the expected tokens of a round with γ drafts:
the probability that a draft is accepted when all before it were. It is measured with one draft a
round, where it is accepted / drafted.

The greedy text changes with the scale, so each measurement is a new sample with an error of its
own, √(α(1 − α) / drafts). A coarse bisection, which any falling curve allows, finds the
neighbourhood; there measurements with all tokens are pooled, so that their errors average out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from engine.errors import ConfigError
from engine.evaluation.acceptance import DraftTally

NUM_PROMPTS = 20
FULL_TOKENS = 200
"""New tokens of each prompt, when it counts: 4,000 in all."""
COARSE_TOKENS = 50
"""New tokens of each prompt, while the search is far away."""

SCALE_LIMITS = (2.0**-20, 2.0**6)
_START = 0.05
_STRIDE = 2.0
_NEIGHBOURHOOD = 1.25
"""Ratio of two scales between which the coarse search leaves off."""
_LOGIT_SLOPE = 1.2
"""How fast the logit of the acceptance falls with the scale's logarithm.

Measured 1.0 (acceptance 0.97) to 1.4 (0.2) on random models. A wrong slope costs measurements,
not accuracy: what is pooled lies close together.
"""
_MAX_FULL_MEASUREMENTS = 10

Measure = Callable[[float, int], DraftTally]
"""(residual scale, new tokens of each prompt) → what its drafts came to."""
Report = Callable[[float, DraftTally], None]
"""Told each measurement."""


class Calibration(NamedTuple):
    """The scale that was found, and the measurement that says so."""

    residual_scale: float
    tally: DraftTally


@dataclass(frozen=True, slots=True)
class _Sample:
    scale: float
    num_drafted: int
    num_accepted: int

    @property
    def rate(self) -> float:
        return self.num_accepted / self.num_drafted

    @property
    def logit(self) -> float:
        """Finite even if all or none were accepted."""
        return math.log((self.num_accepted + 0.5) / (self.num_drafted - self.num_accepted + 0.5))


def calibrate(
    measure: Measure,
    agreement: float,
    tolerance: float,
    report: Report = lambda scale, tally: None,
) -> Calibration:
    """A residual scale whose full measurement lies within `tolerance` of `agreement`.

    Raises `ConfigError`, with the range that was reached, when there is none between
    `SCALE_LIMITS`, or when the measurements scatter more widely than the tolerance.
    """
    return _Search(measure, agreement, tolerance, report).run()


class _Search:
    def __init__(
        self, measure: Measure, agreement: float, tolerance: float, report: Report
    ) -> None:
        self._measure = measure
        self._agreement = agreement
        self._tolerance = tolerance
        self._report = report
        self._samples: list[_Sample] = []

    def run(self) -> Calibration:
        low, high = self._bracket()
        while high > _NEIGHBOURHOOD * low:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._agrees_too_often(middle) else (low, middle)
        scale = math.sqrt(low * high)
        full: list[_Sample] = []
        for _ in range(_MAX_FULL_MEASUREMENTS):
            tally = self._take(scale, FULL_TOKENS)
            full.append(self._samples[-1])
            if abs(full[-1].rate - self._agreement) <= self._tolerance:
                return Calibration(scale, tally)
            scale = self._pooled_estimate(full)
        raise self._unreachable()

    def _bracket(self) -> tuple[float, float]:
        """Scales a stride apart: the first agrees too often, the second too seldom."""
        scale = _START
        rising = self._agrees_too_often(scale)
        while True:
            following = scale * _STRIDE if rising else scale / _STRIDE
            if not SCALE_LIMITS[0] <= following <= SCALE_LIMITS[1]:
                raise self._unreachable()
            if self._agrees_too_often(following) is not rising:
                return min(scale, following), max(scale, following)
            scale = following

    def _agrees_too_often(self, scale: float) -> bool:
        self._take(scale, COARSE_TOKENS)
        return self._samples[-1].rate > self._agreement

    def _take(self, scale: float, num_new_tokens: int) -> DraftTally:
        tally = self._measure(scale, num_new_tokens)
        self._samples.append(_Sample(scale, tally.num_drafted, tally.num_accepted))
        self._report(scale, tally)
        return tally

    def _pooled_estimate(self, samples: list[_Sample]) -> float:
        """Where samples expect the target, each by the slope, weighted by what it counted."""
        target = math.log(self._agreement / (1.0 - self._agreement))
        weighted = sum(
            sample.num_drafted * (math.log(sample.scale) + (sample.logit - target) / _LOGIT_SLOPE)
            for sample in samples
        )
        estimate = math.exp(weighted / sum(sample.num_drafted for sample in samples))
        return min(max(estimate, SCALE_LIMITS[0]), SCALE_LIMITS[1])

    def _unreachable(self) -> ConfigError:
        samples = sorted(self._samples, key=lambda sample: sample.scale)
        first, last = samples[0], samples[-1]
        return ConfigError(
            f"an agreement of {self._agreement:g} ± {self._tolerance:g} was not reached: residual "
            f"scales from {first.scale:.3g} to {last.scale:.3g} gave {first.rate:.4f} to "
            f"{last.rate:.4f}"
        )

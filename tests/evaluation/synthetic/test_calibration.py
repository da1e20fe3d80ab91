"""The search for a residual scale, on curves whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.errors import ConfigError
from engine.evaluation.acceptance import DraftTally
from engine.evaluation.synthetic.calibration import (
    COARSE_TOKENS,
    FULL_TOKENS,
    NUM_PROMPTS,
    SCALE_LIMITS,
    calibrate,
)

Curve = Callable[[float], float]


def logistic(middle: float, slope: float) -> Curve:
    return lambda scale: 1.0 / (1.0 + (scale / middle) ** slope)


class Sampled:
    """Measures a curve as drafts would: with an error of its own each time."""

    def __init__(self, curve: Curve, seed: int) -> None:
        self.curve = curve
        self.rng = np.random.default_rng(seed)
        self.calls: list[tuple[float, int]] = []

    def __call__(self, scale: float, num_new_tokens: int) -> DraftTally:
        self.calls.append((scale, num_new_tokens))
        num_tokens = NUM_PROMPTS * num_new_tokens
        rate = self.curve(scale)
        num_drafted = round(num_tokens / (1 + rate))
        num_accepted = int(self.rng.binomial(num_drafted, rate))
        return DraftTally(num_drafted, num_drafted, num_accepted, ())


@pytest.mark.parametrize("slope", [0.7, 1.2, 2.5])
@pytest.mark.parametrize("middle", [1e-3, 0.3, 1.0])
@pytest.mark.parametrize("agreement", [0.1, 0.5, 0.85, 0.97])
def test_finds_the_scale(agreement: float, middle: float, slope: float) -> None:
    curve = logistic(middle, slope)
    errors = []
    for seed in range(10):
        measure = Sampled(curve, seed)
        found = calibrate(measure, agreement, 0.01)
        assert abs((found.tally.acceptance_rate or 0.0) - agreement) <= 0.01
        assert measure.calls[-1] == (found.residual_scale, FULL_TOKENS)
        errors.append(curve(found.residual_scale) - agreement)
    # One measurement's own error is up to 0.01 here; a search that does not search is far off.
    assert np.abs(errors).mean() < 0.015


def test_most_measurements_are_coarse_and_all_are_reported() -> None:
    measure = Sampled(logistic(0.3, 1.2), 1)
    reported: list[float] = []
    calibrate(measure, 0.85, 0.01, lambda scale, tally: reported.append(scale))
    assert reported == [scale for scale, _ in measure.calls]
    lengths = [length for _, length in measure.calls]
    assert lengths == sorted(lengths) and set(lengths) == {COARSE_TOKENS, FULL_TOKENS}
    assert len(lengths) <= 12


@pytest.mark.parametrize(("floor", "ceiling", "agreement"), [(0.0, 0.7, 0.85), (0.3, 1.0, 0.1)])
def test_an_agreement_out_of_reach_names_what_was_reached(
    floor: float, ceiling: float, agreement: float
) -> None:
    def curve(scale: float) -> float:
        return floor + (ceiling - floor) * logistic(0.05, 1.0)(scale)

    measure = Sampled(curve, 0)
    with pytest.raises(ConfigError, match=rf"agreement of {agreement} ± 0.01 was not") as caught:
        calibrate(measure, agreement, 0.01)
    tried = [scale for scale, _ in measure.calls]
    assert SCALE_LIMITS[0] <= min(tried) and max(tried) <= SCALE_LIMITS[1]
    assert f"from {min(tried):.3g} to {max(tried):.3g} gave 0." in str(caught.value)


def test_measurements_that_scatter_are_given_up() -> None:
    calls = 0

    def measure(scale: float, num_new_tokens: int) -> DraftTally:
        nonlocal calls
        calls += 1
        return DraftTally(1000, 1000, 830 if (scale > 0.1) ^ (calls % 2) else 870, ())

    with pytest.raises(ConfigError, match="was not reached"):
        calibrate(measure, 0.85, 0.01)
    assert calls < 30

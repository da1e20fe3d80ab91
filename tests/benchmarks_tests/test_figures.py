"""Medians, spreads and ratios."""

from __future__ import annotations

import math

import pytest

from benchmarks.figures import best, over_best, paired_ratio, ratio_error, spread


def test_a_ratio_pairs_neighbouring_samples() -> None:
    """The machine was three times slower during the second pair: the ratio does not care."""
    assert paired_ratio([10.0, 30.0, 10.2], [5.0, 15.0, 5.0]) == 2.0


def test_a_ratio_leaves_out_what_has_no_partner() -> None:
    assert paired_ratio([8.0, 100.0], [2.0]) == 4.0


def test_a_ratio_needs_samples() -> None:
    with pytest.raises(ValueError, match="pair"):
        paired_ratio([], [1.0])


def test_spread_is_relative_to_the_median() -> None:
    assert spread([8.0, 10.0, 13.0]) == 0.5
    assert spread([4.0]) == 0.0


def test_the_best_has_the_greatest_median() -> None:
    assert best({"one outlier": [1.0, 1.0, 99.0], "steady": [2.0, 2.0, 2.0]}) == "steady"


def test_over_best_does_not_reward_luck() -> None:
    """Two candidates of one speed, each lucky in turn: picked by luck, they seem 10 % faster."""
    samples = [10.0] * 4
    lucky = {"a": [11.0, 10.0, 11.0, 10.0], "b": [10.0, 11.0, 10.0, 11.0]}
    assert over_best(samples, lucky) == 1.0


def test_over_best_finds_the_one_that_is_better_everywhere() -> None:
    samples = [9.0, 18.0, 9.0]
    assert over_best(samples, {"slow": [5.0, 10.0, 5.0], "fast": [10.0, 20.0, 10.0]}) == 0.9


def test_over_best_of_single_samples_is_their_ratio() -> None:
    assert over_best([3.0], {"slow": [2.0], "fast": [4.0]}) == 0.75


def test_a_ratios_error_falls_with_the_samples() -> None:
    above, below = [9.0, 11.0] * 8, [10.0] * 16
    assert ratio_error(above, below) == pytest.approx(0.1 * (math.pi / 2) ** 0.5 / 4)
    assert ratio_error(above * 4, below * 4) == pytest.approx(ratio_error(above, below) / 2)

"""Each doubt about exits is raised by the numbers that call for it, and by no others."""

from __future__ import annotations

import pytest

from engine.evaluation.credibility import exit_warnings
from engine.evaluation.scores import ExitScore, ModelScores

VOCAB_SIZE = 100
OTHER = {2: 40.0, 4: 40.0, 6: 10.0}


def report(early: float = 12.0, full: float = 10.0, agreement: float = 0.7) -> ModelScores:
    exits = (
        ExitScore(2, 15.0, 1.0, 0.6, 0.1, None, None),
        ExitScore(4, early, 1.0, agreement, 0.1, None, None),
        ExitScore(6, full, 1.0, 1.0, 0.1, None, None),
    )
    return ModelScores(1, 100, 400, 0, 4, exits)


def test_a_credible_model_raises_no_doubt() -> None:
    assert list(exit_warnings(report(), VOCAB_SIZE, True, OTHER)) == []


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"early": 50.0}, "exit 4: a perplexity of 50 is near or above the 100 of guessing"),
        ({"early": float("inf")}, "exit 4: a perplexity of inf is near or above"),
        ({"early": 9.0}, "exit 4: a perplexity of 9 is better than the 10 of full depth"),
        ({"full": 1.13}, "a perplexity of 1.13 is too good"),
        ({"agreement": 0.1}, "exit 4: agrees with full depth at 10.0%"),
    ],
)
def test_one_bad_number_raises_one_doubt(numbers: dict[str, float], message: str) -> None:
    (warning,) = exit_warnings(report(**numbers), VOCAB_SIZE, True, OTHER)
    assert warning.startswith(message)


@pytest.mark.parametrize(("exit_norm", "would"), [(True, "without"), (False, "with")])
def test_an_exit_norm_that_is_set_wrongly(exit_norm: bool, would: str) -> None:
    other = {2: 13.0, 4: 11.0, 6: 10.0}
    (warning,) = exit_warnings(report(), VOCAB_SIZE, exit_norm, other)
    assert f"exits 2, 4 predict better {would} the final norm" in warning

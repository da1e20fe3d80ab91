"""What in a model's numbers is not to be believed, said in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from engine.checkpoint.inspection import TensorReport, WeightsReport
from engine.checkpoint.names import is_linear
from engine.checkpoint.ternary import SCALE_FLOOR
from engine.evaluation.scores import ExitScore, ModelScores

_MOSTLY_ZERO = 0.99
_RARE = 0.01
"""A share of zeros, or of one sign among the others, under which there are none to speak of."""
_HUGE_SCALE = 100.0
"""Normed inputs times that overflow nothing, but no training ends there (trained: about 0.01–1)."""
_TOO_GOOD = 2.0
"""No causal model has this perplexity on running text that it has not seen."""
_TOLERANCE = 0.01
"""How much better, relative, something must be before it counts as better."""


def weight_warnings(weights: WeightsReport) -> Iterator[str]:
    """Tensors that cannot be used, and ternary weights that no training leaves behind."""
    for tensor in weights.tensors:
        if tensor.error is not None:
            yield f"cannot be used: {tensor.error}"
        elif tensor.trits is not None:
            yield from _ternary_warnings(tensor)
        elif tensor.largest == 0:
            yield f"{tensor.name}: all of it is zero"
        elif is_linear(tensor.name) and tensor.largest == tensor.smallest:
            yield (
                f"{tensor.name}: holds only 0 and ±{tensor.largest:g}: are these ternary weights, "
                "which config.json calls dense?"
            )
    scales = {tensor.scale for tensor in weights.ternary}
    if scales == {1.0}:
        yield "the scale of every linear is exactly 1: were scales lost when it was converted?"


def _ternary_warnings(tensor: TensorReport) -> Iterator[str]:
    assert tensor.trits is not None and tensor.scale is not None
    minus, zero, plus = tensor.trits.shares()
    if zero > _MOSTLY_ZERO:
        yield f"{tensor.name}: {zero:.1%} of its weights are zero"
    elif min(minus, plus) < _RARE * (minus + plus):
        sign = "+1" if plus > minus else "−1"
        yield f"{tensor.name}: nearly all of its weights that are not zero are {sign}"
    if zero < _RARE:
        yield f"{tensor.name}: {zero:.1%} of its weights are zero: these are two values, not three"
    if tensor.scale <= SCALE_FLOOR * (1 + _TOLERANCE):
        yield f"{tensor.name}: a scale of {tensor.scale:g} makes it nothing"
    elif tensor.scale > _HUGE_SCALE:
        yield f"{tensor.name}: a scale of {tensor.scale:g} is huge"


def exit_warnings(
    scores: ModelScores,
    vocab_size: int,
    exit_norm: bool,
    other_norm: Mapping[int, float],
) -> Iterator[str]:
    """Exits that predict like no trained, causal model; `other_norm` is as in `InspectedExits`."""
    *early, full = scores.exits
    for score in scores.exits:
        if score.perplexity >= vocab_size / 2:
            yield (
                f"exit {score.exit_layer}: a perplexity of {score.perplexity:.4g} is near or above "
                f"the {vocab_size:,} of guessing evenly"
            )
    if full.perplexity < _TOO_GOOD:
        yield (
            f"a perplexity of {full.perplexity:.3g} is too good for text that the model has not "
            "seen: was it trained on this text, or does the text repeat itself?"
        )
    for score in early:
        yield from _compare(score, full)
    yield from _norm_warnings(early, exit_norm, other_norm)


def _compare(score: ExitScore, full: ExitScore) -> Iterator[str]:
    if score.perplexity < full.perplexity * (1 - _TOLERANCE):
        yield (
            f"exit {score.exit_layer}: a perplexity of {score.perplexity:.4g} is better than "
            f"the {full.perplexity:.4g} of full depth: the layers after it do harm"
        )
    if score.agreement <= score.chance_agreement:
        yield (
            f"exit {score.exit_layer}: agrees with full depth at {score.agreement:.1%} of the "
            f"positions, no more than chance ({score.chance_agreement:.1%})"
        )


def _norm_warnings(
    early: list[ExitScore], exit_norm: bool, other_norm: Mapping[int, float]
) -> Iterator[str]:
    better = [
        score.exit_layer
        for score in early
        if other_norm.get(score.exit_layer, math.inf) < score.perplexity * (1 - _TOLERANCE)
    ]
    if 2 * len(better) > len(early):
        say, would = ("true", "without") if exit_norm else ("false", "with")
        yield (
            f"config.json has exit_norm {say}, but exits {', '.join(map(str, better))} predict "
            f"better {would} the final norm: is it as the model was trained?"
        )

"""What is made of samples: medians, spreads and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median


def spread(samples: Sequence[float]) -> float:
    """(Largest − smallest) / median: how much noise a median stands on."""
    middle = median(samples)
    return (max(samples) - min(samples)) / middle if middle else 0.0


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios of samples that were taken one after the other.

    On a shared machine this is steadier than the ratio of the medians: what slowed one sample
    down had slowed its neighbour down too. Samples without a partner are left out.
    """
    pairs = list(zip(numerators, denominators, strict=False))
    if not pairs:
        raise ValueError("a ratio needs at least one pair of samples")
    return median(above / below for above, below in pairs)


def best(candidates: Mapping[str, Sequence[float]]) -> str:
    """The name with the greatest median."""
    return max(candidates, key=lambda name: median(candidates[name]))

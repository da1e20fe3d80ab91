"""What is made of samples: medians, spreads and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi, sqrt
from statistics import median, pstdev


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


def ratio_error(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The standard error of `paired_ratio`, as of a median of values that are spread normally."""
    ratios = [above / below for above, below in zip(numerators, denominators, strict=False)]
    return sqrt(pi / 2) * pstdev(ratios) / sqrt(len(ratios))


def best(candidates: Mapping[str, Sequence[float]]) -> str:
    """The name with the greatest median."""
    return max(candidates, key=lambda name: median(candidates[name]))


def over_best(samples: Sequence[float], candidates: Mapping[str, Sequence[float]]) -> float:
    """`paired_ratio` over the best candidate, without the luck of having been picked.

    The greatest of several noisy medians is the one that was lucky. So the best is picked from
    every other sample and compared in those between, then the other way round, and the figure is
    the geometric mean of the two.
    """
    shortest = min(len(samples), *map(len, candidates.values()))
    if shortest < 2:
        return paired_ratio(samples, candidates[best(candidates)])
    ratios = []
    for half in (0, 1):
        picked = best({name: own[1 - half :: 2] for name, own in candidates.items()})
        ratios.append(paired_ratio(samples[half::2], candidates[picked][half::2]))
    return sqrt(ratios[0] * ratios[1])

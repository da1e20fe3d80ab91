"""How long prompts and answers are: fixed, uniform or lognormal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Literal

FORMS = "N or fixed:N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of numbers of tokens, all at least 1."""

    kind: Literal["fixed", "uniform", "lognormal"]
    first: float
    """The length; the lowest, of a uniform one; the median, of a lognormal one."""
    second: float = 0.0
    """The highest, of a uniform one; sigma of the logarithm, of a lognormal one."""

    @property
    def least(self) -> int:
        """The shortest length that there can be."""
        return 1 if self.kind == "lognormal" else int(self.first)

    def draw(self, random: Random) -> int:
        """One length."""
        match self.kind:
            case "fixed":
                return int(self.first)
            case "uniform":
                return random.randint(int(self.first), int(self.second))
            case "lognormal":
                return max(1, round(random.lognormvariate(math.log(self.first), self.second)))

    def __str__(self) -> str:
        numbers = [self.first] if self.kind == "fixed" else [self.first, self.second]
        return ":".join([self.kind, *(f"{number:g}" for number in numbers)])


def parse_lengths(text: str) -> Lengths:
    """Read one of `FORMS`; raises `ValueError` saying what is wrong."""
    kind, *rest = text.split(":")
    if kind.isdigit():
        kind, rest = "fixed", [kind, *rest]
    try:
        match kind, rest:
            case "fixed", [length]:
                lengths = Lengths("fixed", int(length))
            case "uniform", [low, high]:
                lengths = Lengths("uniform", int(low), int(high))
            case "lognormal", [median, sigma]:
                lengths = Lengths("lognormal", float(median), float(sigma))
            case _:
                raise ValueError
    except ValueError:
        raise ValueError(f"{text!r} is not one of {FORMS}") from None
    if not (math.isfinite(lengths.first) and math.isfinite(lengths.second)):
        raise ValueError(f"{text!r} is not finite")
    if lengths.first < 1 or lengths.second < 0:
        raise ValueError(f"{text!r}: lengths are at least 1")
    if lengths.kind == "uniform" and lengths.second < lengths.first:
        raise ValueError(f"{text!r}: the highest is below the lowest")
    return lengths

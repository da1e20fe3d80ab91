"""What a run varies: the exit and the drafting of its requests, and how they arrive."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeVar

from clients.options import Speculative

N = TypeVar("N", int, float)

SPECULATION_FORMS = "server, off, auto, ngram, xN, EXITx, EXITxN"
_DRAFTS = re.compile(r"(?P<exit>\d+)?x(?P<num>\d+)?")


@dataclass(frozen=True, slots=True)
class Setting:
    """How requests are answered: by which exit, and drafted how."""

    exit_layer: int | None = None
    """None: all layers."""
    speculation: str = "server"
    """One of `SPECULATION_FORMS`; `server` says nothing in the request, `3x4` means four drafts
    per round by three layers."""

    @property
    def speculative(self) -> bool | Speculative | None:
        """The request's field; raises `ValueError` for a form that is none."""
        match self.speculation:
            case "server":
                return None
            case "off":
                return False
            case "auto":
                return True
            case "ngram":
                return Speculative(method="ngram")
        found = _DRAFTS.fullmatch(self.speculation)
        if found is None or self.speculation == "x":
            raise ValueError(f"{self.speculation!r} is not one of {SPECULATION_FORMS}")
        depth, num = found["exit"], found["num"]
        return Speculative(
            exit_layer=None if depth is None else int(depth),
            num_speculations=None if num is None else int(num),
            method=None if depth is None else "early_exit",
        )

    def checked(self) -> Setting:
        """Itself; raises `ValueError` for a speculation that is none."""
        _ = self.speculative
        return self

    def __str__(self) -> str:
        depth = "all layers" if self.exit_layer is None else f"exit {self.exit_layer}"
        return f"{depth}, speculation {self.speculation}"


@dataclass(frozen=True, slots=True)
class Load:
    """How requests arrive: exactly one of the two is set."""

    rate: float | None = None
    """Requests per second, at random times (a Poisson process); infinite: all at once."""
    concurrency: int | None = None
    """So many clients, each sending its next request when its last was answered."""

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.concurrency is None):
            raise ValueError("a load is either a rate or a concurrency")
        if self.rate is not None and not self.rate > 0:
            raise ValueError("a rate must be above 0")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError("a concurrency must be at least 1")

    def __str__(self) -> str:
        if self.rate is None:
            return f"{self.concurrency} at once"
        return "all at the start" if math.isinf(self.rate) else f"{self.rate:g} per second"


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_loads(rate: str | None, concurrency: str | None) -> tuple[Load, ...]:
    """Loads from lists like `1,2,inf` or `1,8`; four at once where neither is given.

    Raises `ValueError`.
    """
    if rate is not None:
        return tuple(Load(rate=_number(part, float, "rate")) for part in _parts(rate))
    return tuple(
        Load(concurrency=_number(part, int, "concurrency"))
        for part in _parts("4" if concurrency is None else concurrency)
    )


def parse_settings(exit_layers: str, speculation: str) -> tuple[Setting, ...]:
    """Every exit of one list with every speculation of the other; raises `ValueError`."""
    exits = [
        None if part == "all" else _number(part, int, "exit layer") for part in _parts(exit_layers)
    ]
    return tuple(
        Setting(exit_layer, drafting).checked()
        for exit_layer in exits
        for drafting in _parts(speculation)
    )


def _number(text: str, kind: type[N], name: str) -> N:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is no {name}") from None

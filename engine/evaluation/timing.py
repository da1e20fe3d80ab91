"""Where an engine's time goes: a backend that notes how long its calls took, and their sums."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, cast

from engine.backends.protocol import Backend
from engine.metrics import PassStats

Clock = Callable[[], float]
Part = Literal["sweep", "head", "draft_head"]

_PARTS: dict[str, Part] = {
    "sweep": "sweep",
    "head": "head",
    "draw": "head",
    "draft_head": "draft_head",
    "draw_drafts": "draft_head",
}
"""The backend's methods that compute, and what each is booked as."""


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Seconds of rounds, by what they were spent on."""

    draft_layers_s: float = 0.0
    """Draft passes through the first layers."""
    draft_head_s: float = 0.0
    """The draft head, and picking drafts from what it says."""
    layers_s: float = 0.0
    """The round's sweep for everybody: decoding and verification."""
    head_s: float = 0.0
    """The full head, and picking tokens."""
    outside_s: float = 0.0
    """Everything that is not in the backend: scheduling, acceptance, detokenising."""

    @property
    def total_s(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    @classmethod
    def sum(cls, splits: Iterable[Self]) -> Self:
        """Part by part."""
        listed = list(splits)
        return cls(*(sum(getattr(s, field.name) for s in listed) for field in fields(cls)))

    @classmethod
    def of_round(
        cls, calls: Sequence[tuple[Part, float]], passes: Sequence[PassStats], duration_s: float
    ) -> Self:
        """One engine step's calls of the backend, told apart by the passes that it ran.

        A pass is one sweep and what heads say of it; draft passes come first.
        """
        num_draft_passes = sum(each.phase == "draft" for each in passes)
        sweeps = [seconds for part, seconds in calls if part == "sweep"]
        in_backend = sum(seconds for _, seconds in calls)
        return cls(
            draft_layers_s=sum(sweeps[:num_draft_passes]),
            draft_head_s=sum(seconds for part, seconds in calls if part == "draft_head"),
            layers_s=sum(sweeps[num_draft_passes:]),
            head_s=sum(seconds for part, seconds in calls if part == "head"),
            outside_s=max(0.0, duration_s - in_backend),
        )


class TimedBackend:
    """Passes everything on to a backend, and notes how long what computes took."""

    def __init__(self, backend: Backend, clock: Clock = time.perf_counter) -> None:
        self._backend = backend
        self._clock = clock
        self._calls: list[tuple[Part, float]] = []

    def as_backend(self) -> Backend:
        """Itself, as what it stands for."""
        return cast(Backend, self)

    def take_calls(self) -> list[tuple[Part, float]]:
        """The calls since this was last asked: what each was, and its seconds."""
        calls, self._calls = self._calls, []
        return calls

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._backend, name)
        if name not in _PARTS:
            return attribute
        timed = self._timed(_PARTS[name], attribute)
        # Found at once the next time: measuring should cost little.
        self.__dict__[name] = timed
        return timed

    def _timed(self, part: Part, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = self._clock()
            result = method(*args, **kwargs)
            self._calls.append((part, self._clock() - started))
            return result

        return call

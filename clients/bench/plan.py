"""What is sent, and when: a schedule that follows from the seed alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from clients.bench.lengths import Lengths
from clients.bench.prompts import MadeUpText, ReadPrompt
from clients.bench.settings import Load, Setting


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request, before it is sent."""

    index: int
    at_s: float | None
    """When it is due, from the start of the run; None: when a client is free."""
    prompt: str | tuple[int, ...]
    max_tokens: int
    setting: Setting
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What all runs of one benchmark send; each run chooses load and settings."""

    prompts: tuple[ReadPrompt, ...] | MadeUpText
    """Prompts from a file, repeated in their order, or text to cut prompts from."""
    input_lengths: Lengths
    """For made-up prompts."""
    output_lengths: Lengths
    """For prompts that do not say how long their answer may be."""
    max_model_len: int
    """Lengths are cut to what fits."""
    num_requests: int | None
    duration_s: float | None
    """How long requests are sent; those that then run are waited for."""
    seed: int

    def schedule(self, load: Load, settings: Sequence[Setting]) -> Iterator[PlannedRequest]:
        """The requests of a run; with several settings, each takes one of them at random.

        The same seed gives the same requests, and any load the same ones in the same order.
        """
        # Streams of their own: what one draws must not shift the others.
        arrivals, inputs, outputs, choices = (
            Random(f"{self.seed}/{name}") for name in ("arrivals", "inputs", "outputs", "choices")
        )
        at_s = 0.0
        for index in count():
            if index == self.num_requests:
                return
            if load.rate is not None and index:
                at_s += 0.0 if math.isinf(load.rate) else arrivals.expovariate(load.rate)
            if load.rate is not None and self.duration_s is not None and at_s >= self.duration_s:
                return
            prompt, max_tokens, own_setting = self._content(index, inputs, outputs)
            drawn = choices.choice(settings)
            yield PlannedRequest(
                index=index,
                at_s=None if load.rate is None else at_s,
                prompt=prompt,
                max_tokens=max_tokens,
                setting=own_setting or drawn,
                seed=self.seed * 1_000_003 + index,
            )

    def __post_init__(self) -> None:
        """Refuse made-up lengths that never fit; a drawn one that is too long is cut."""
        least = self.input_lengths.least + self.output_lengths.least
        if isinstance(self.prompts, MadeUpText) and least > self.max_model_len:
            raise ValueError(
                f"input length {self.input_lengths} and output length {self.output_lengths} do not "
                f"fit together into the model's context of {self.max_model_len} tokens"
            )

    def _content(
        self, index: int, inputs: Random, outputs: Random
    ) -> tuple[str | tuple[int, ...], int, Setting | None]:
        drawn = self.output_lengths.draw(outputs)
        if isinstance(self.prompts, MadeUpText):
            length = min(self.input_lengths.draw(inputs), self.max_model_len - 1)
            return self.prompts.cut(length, inputs), min(drawn, self.max_model_len - length), None
        read = self.prompts[index % len(self.prompts)]
        return read.prompt, read.max_tokens or drawn, read.setting

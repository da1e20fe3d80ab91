"""From the engine's outputs to the parts of a choice, as far as they have gathered.

A streamed choice and a whole one go through the same assembler, which is why they agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.types import (
    ChoiceMetrics,
    ChoiceOutput,
    FinishReason,
    TokenLogprobs,
    TokenOutput,
)
from server.prompts import PreparedPrompt

_FAILURES = (FinishReason.ERROR, FinishReason.ABORT)


@dataclass(frozen=True, slots=True)
class ChoicePart:
    """What has gathered of a choice since its last part."""

    index: int
    prompt: PreparedPrompt
    is_first: bool
    """Whether nothing of the choice came before; an echo belongs to this part."""
    offset: int
    """Characters of the choice before the text of `tokens`."""
    tokens: tuple[TokenOutput, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None
    """In the first part, when the engine was asked for them."""
    end: ChoiceOutput | None
    """The output that ended the choice, in its last part."""

    @property
    def echo(self) -> str | None:
        """The text to put first, if this is the part for it."""
        return self.prompt.echo if self.is_first else None

    @property
    def text(self) -> str:
        """The part's text, an echo included."""
        return (self.echo or "") + "".join(token.text for token in self.tokens)

    @property
    def metrics(self) -> ChoiceMetrics | None:
        """The timing and accounting, once the choice has ended."""
        return None if self.end is None else self.end.metrics


class ChoiceAssembler:
    """Gathers one choice's outputs and hands out what has gathered.

    `take` returns everything since the last `take`; what is taken piece by piece, joined, is
    what one `take` at the end returns.
    """

    def __init__(self, index: int, prompt: PreparedPrompt) -> None:
        self._index = index
        self._prompt = prompt
        self._is_first = True
        self._offset = len(prompt.echo or "")
        self._pending: list[TokenOutput] = []
        self._prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
        self._last: ChoiceOutput | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the choice has ended as its client asked: `stop` or `length`."""
        return self._last is not None and not self.is_failed

    @property
    def is_failed(self) -> bool:
        """Whether the choice was ended early, with an error in place of a finish reason."""
        return self._last is not None and self._last.finish_reason in _FAILURES

    @property
    def has_content(self) -> bool:
        """Whether there is text to take; tokens without text wait for the next that has some."""
        if self._is_first and self._prompt.echo:
            return True
        return any(token.text for token in self._pending)

    def add(self, output: ChoiceOutput) -> None:
        """Take in the choice's next output."""
        self._pending.extend(output.tokens)
        self._prompt_logprobs = output.prompt_logprobs or self._prompt_logprobs
        if output.finish_reason is not None:
            self._last = output

    def take(self) -> ChoicePart:
        """What has gathered; the assembler is empty afterwards."""
        part = ChoicePart(
            index=self._index,
            prompt=self._prompt,
            is_first=self._is_first,
            offset=self._offset,
            tokens=tuple(self._pending),
            prompt_logprobs=self._prompt_logprobs if self._is_first else None,
            end=self._last if self.is_complete else None,
        )
        self._offset += sum(len(token.text) for token in self._pending)
        self._pending = []
        self._is_first = False
        return part

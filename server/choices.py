"""From the engine's outputs to the choices, usage and metrics of a response.

A streamed choice and a whole one go through the same assembler, which is why they agree.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine.types import (
    ChoiceMetrics,
    ChoiceOutput,
    FinishReason,
    SpeculationMetrics,
    TokenLogprobs,
    TokenOutput,
)
from server.engine_api import Tokenizer

LOWEST_LOGPROB = -9999.0
"""How minus infinity is written, JSON having no word for it (vLLM does the same)."""

_FAILURES = (FinishReason.ERROR, FinishReason.ABORT)


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt as the engine sees it, and the text to put before the completion."""

    token_ids: tuple[int, ...]
    text: str
    """Special tokens kept; empty unless the prompt is echoed."""


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """What a choice carries besides its text."""

    logprobs: bool
    token_sources: bool


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


class CompletionLogprobs:
    """The `logprobs` object of a text completion, entry by entry."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens: list[str] = []
        self.token_logprobs: list[float | None] = []
        self.top_logprobs: list[dict[str, float] | None] = []
        self.text_offset: list[int] = []

    def add(self, token_id: int, logprobs: TokenLogprobs | None, text_offset: int) -> None:
        """Append one token; without logprobs (a prompt's first token) its values are null."""
        name = self._tokenizer.token_text(token_id)
        self.tokens.append(name)
        self.text_offset.append(text_offset)
        if logprobs is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        chosen = _finite(logprobs.logprob)
        top = {self._tokenizer.token_text(other): _finite(value) for other, value in logprobs.top}
        top[name] = chosen
        self.token_logprobs.append(chosen)
        self.top_logprobs.append(top)

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's form."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


def prompt_offsets(tokenizer: Tokenizer, prompt: EchoedPrompt) -> Iterable[int]:
    """For each token, how many characters of the prompt's text are complete before it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    num_characters = 0
    for token_id in prompt.token_ids:
        yield min(num_characters, len(prompt.text))
        num_characters += len(decoder.decode(tokenizer.token_bytes(token_id)))


class ChoiceAssembler:
    """Gathers one choice's outputs and hands out what has gathered.

    `take` returns everything since the last `take`; what is taken piece by piece, joined, is
    what one `take` at the end returns.
    """

    def __init__(
        self,
        index: int,
        options: ChoiceOptions,
        tokenizer: Tokenizer,
        echo: EchoedPrompt | None,
    ) -> None:
        self._index = index
        self._options = options
        self._tokenizer = tokenizer
        self._echo = echo
        self._pending: list[TokenOutput] = []
        self._prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
        self._num_characters = 0
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
        if self._echo is not None and self._echo.text:
            return True
        return any(token.text for token in self._pending)

    def add(self, output: ChoiceOutput) -> None:
        """Take in the choice's next output."""
        self._pending.extend(output.tokens)
        self._prompt_logprobs = output.prompt_logprobs or self._prompt_logprobs
        if output.finish_reason is not None:
            self._last = output

    def take(self) -> dict[str, Any]:
        """What has gathered, as an element of `choices`; the assembler is empty afterwards."""
        logprobs = CompletionLogprobs(self._tokenizer) if self._options.logprobs else None
        text = self._take_echo(logprobs)
        for token in self._pending:
            if logprobs is not None:
                logprobs.add(token.token_id, token.logprobs, self._num_characters)
            self._num_characters += len(token.text)
        text += "".join(token.text for token in self._pending)
        last = self._last if self.is_complete else None
        choice: dict[str, Any] = {
            "index": self._index,
            "text": text,
            "logprobs": None if logprobs is None else logprobs.to_dict(),
            "finish_reason": last.finish_reason if last else None,
            "stop_reason": last.stop_reason if last else None,
        }
        if self._options.token_sources:
            choice["token_sources"] = [
                {"token_id": token.token_id, "text": token.text, "source": token.source}
                for token in self._pending
            ]
        self._pending = []
        return choice

    def _take_echo(self, logprobs: CompletionLogprobs | None) -> str:
        """The prompt's text, once, with its entries in `logprobs`."""
        if self._echo is None:
            return ""
        prompt, self._echo = self._echo, None
        if logprobs is not None:
            entries = zip(
                prompt.token_ids,
                # A request that failed before its prompt was read has none.
                self._prompt_logprobs or (None,) * len(prompt.token_ids),
                prompt_offsets(self._tokenizer, prompt),
                strict=True,
            )
            for token_id, entry, offset in entries:
                logprobs.add(token_id, entry, offset)
        self._num_characters = len(prompt.text)
        return prompt.text

    def metrics(self) -> dict[str, Any] | None:
        """The finished choice's `metrics` object."""
        if self._last is None or self._last.metrics is None:
            return None
        return metrics_object(self._last.metrics)


def _milliseconds(duration_s: float | None) -> float | None:
    return None if duration_s is None else duration_s * 1000.0


def metrics_object(metrics: ChoiceMetrics) -> dict[str, Any]:
    """The `metrics` object that `return_metrics` asks for."""
    duration_s = metrics.generation_time_s
    return {
        "exit_layer": metrics.exit_layer,
        "time_to_first_token_ms": _milliseconds(metrics.time_to_first_token_s),
        "generation_time_ms": _milliseconds(duration_s),
        "queue_time_ms": _milliseconds(metrics.queue_time_s),
        "mean_itl_ms": _milliseconds(metrics.mean_itl_s),
        "tokens_per_second": metrics.num_generated_tokens / duration_s if duration_s > 0 else None,
        "seed": metrics.seed,
        "speculative_decoding": _speculation_object(metrics.speculation),
    }


def _speculation_object(speculation: SpeculationMetrics | None) -> dict[str, Any] | None:
    if speculation is None:
        return None
    return {
        "draft_exit_layer": speculation.draft_exit_layer,
        "num_drafts": speculation.num_drafts,
        "num_draft_tokens": speculation.num_draft_tokens,
        "num_accepted_tokens": speculation.num_accepted_tokens,
        "draft_acceptance_rate": speculation.draft_acceptance_rate,
        "mean_acceptance_length": speculation.mean_acceptance_length,
        "accepted_per_position": list(speculation.accepted_per_position),
    }


class UsageCounter:
    """The `usage` of one request: a prompt counts once, however many choices it has.

    Completion tokens are exact at any time; cached tokens and drafts become known as choices
    finish.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_completion_tokens = 0
        self._num_cached: dict[int, int] = {}
        self._num_accepted = 0
        self._num_rejected = 0

    def count(self, prompt_number: int, output: ChoiceOutput) -> None:
        """Count one output of a choice of this prompt."""
        self._num_completion_tokens += len(output.tokens)
        if output.metrics is None:
            return
        # A prompt's first choice shows what was cached before; its siblings hit the first's.
        if output.index == 0:
            self._num_cached[prompt_number] = output.metrics.num_cached_tokens
        speculation = output.metrics.speculation
        if speculation is not None:
            self._num_accepted += speculation.num_accepted_tokens
            self._num_rejected += speculation.num_draft_tokens - speculation.num_accepted_tokens

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's form."""
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached.values())},
            "completion_tokens_details": {
                "accepted_prediction_tokens": self._num_accepted,
                "rejected_prediction_tokens": self._num_rejected,
            },
        }

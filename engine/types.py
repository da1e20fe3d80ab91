"""What goes into the engine and what comes out: plain, frozen values.

Positions and token ids are integers counted from 0; layers as in the HTTP interface
(`exit_layer: 6` is the model of the first six layers); durations are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from engine.config import MAX_SPECULATIONS
from engine.errors import InvalidRequestError

SEED_LIMIT = 1 << 64
"""Seeds are 64-bit keys; negative ones are taken modulo this."""


class FinishReason(StrEnum):
    """Why a choice ended. `ABORT` and `ERROR` never appear in the HTTP interface."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class TokenSource(StrEnum):
    """How a delivered token came about."""

    DRAFT = "draft"
    """Drafted, and confirmed by verification."""
    CORRECTED = "corrected"
    """Verification's own token in place of the first rejected draft."""
    BONUS = "bonus"
    """Verification's token after every draft was accepted."""
    PLAIN = "plain"
    """Sampled in a round without drafts."""


class DraftMethod(StrEnum):
    """Where drafts come from."""

    AUTO = "auto"
    EARLY_EXIT = "early_exit"
    NGRAM = "ngram"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeParams:
    """How a request's tokens are drafted; never changes which tokens it gets."""

    enabled: bool = True
    method: DraftMethod = DraftMethod.AUTO
    exit_layer: int | None = None
    """Draft depth, below the answering depth; None: the engine's own."""
    num_speculations: int | None = None
    """Drafts per round, used exactly (0 to 16); None: the engine decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one prompt is answered. Field names and meanings follow OpenAI and vLLM."""

    max_tokens: int | None = 16
    """At most so many new tokens; None: as many as the context holds."""
    min_tokens: int = 0
    """EOS and stop conditions are held off until so many tokens exist."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    allowed_token_ids: tuple[int, ...] | None = None
    """The only tokens that may be generated; None allows all."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    """Key of the sampling noise; None: the engine draws one and reports it."""
    n: int = 1
    """Number of independent choices for the prompt."""
    logprobs: int | None = None
    """Report each token's logprob and so many alternatives; None: report nothing."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens; bypasses the prefix cache."""
    exit_layer: int | None = None
    """Depth of the model that answers; None: all layers."""
    speculative: SpeculativeParams | None = None
    """None: the engine's default."""
    priority: int = 0
    """Lower is admitted first and preempted last; never changes tokens."""

    def validate(self, vocab_size: int, num_layers: int) -> None:
        """Raise `InvalidRequestError` naming the first field that cannot be honoured."""

        def check(condition: bool, param: str, message: str) -> None:
            if not condition:
                raise InvalidRequestError(f"{param} {message}", param=param)

        check(self.max_tokens is None or self.max_tokens >= 0, "max_tokens", "must be at least 0")
        check(self.min_tokens >= 0, "min_tokens", "must be at least 0")
        if self.max_tokens is not None:
            check(
                self.min_tokens <= self.max_tokens,
                "min_tokens",
                f"must be at most max_tokens ({self.max_tokens})",
            )
        for param, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
            ("repetition_penalty", 0.0, 100.0),
        ):
            value = getattr(self, param)
            check(
                math.isfinite(value) and low <= value <= high,
                param,
                f"must be a number from {low:g} to {high:g}",
            )
        check(self.top_p > 0.0, "top_p", "must be greater than 0")
        check(self.repetition_penalty > 0.0, "repetition_penalty", "must be greater than 0")
        check(self.top_k >= 0, "top_k", "must be at least 0 (0 keeps every token)")
        check(self.n >= 1, "n", "must be at least 1")
        for param in ("logprobs", "prompt_logprobs"):
            value = getattr(self, param)
            check(value is None or value >= 0, param, "must be at least 0")
        for token_id, bias in self.logit_bias.items():
            check(
                0 <= token_id < vocab_size,
                "logit_bias",
                f"names token {token_id}; the vocabulary has {vocab_size} tokens",
            )
            check(
                math.isfinite(bias) and -100.0 <= bias <= 100.0,
                "logit_bias",
                f"of token {token_id} must be a number from -100 to 100",
            )
        check(self.allowed_token_ids != (), "allowed_token_ids", "must not be empty")
        for param in ("stop_token_ids", "allowed_token_ids"):
            for token_id in getattr(self, param) or ():
                check(
                    0 <= token_id < vocab_size,
                    param,
                    f"names token {token_id}; the vocabulary has {vocab_size} tokens",
                )
        check(all(self.stop), "stop", "must not hold an empty string")
        if self.seed is not None:
            check(
                -(SEED_LIMIT // 2) <= self.seed < SEED_LIMIT,
                "seed",
                "must be a 64-bit integer",
            )
        check(abs(self.priority) < SEED_LIMIT // 2, "priority", "must be a 64-bit integer")
        answering = num_layers if self.exit_layer is None else self.exit_layer
        check(
            1 <= answering <= num_layers,
            "exit_layer",
            f"must lie in 1..{num_layers}, the model's layers",
        )
        if self.speculative is not None and self.speculative.enabled:
            draft, count = self.speculative.exit_layer, self.speculative.num_speculations
            if draft is not None:
                check(
                    1 <= draft < answering,
                    "speculative.exit_layer",
                    f"must be at least 1 and below the answering depth ({answering})",
                )
            check(
                count is None or 0 <= count <= MAX_SPECULATIONS,
                "speculative.num_speculations",
                f"must lie in 0..{MAX_SPECULATIONS}",
            )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-softmax of the raw full-head logits at one position."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The most likely (token id, logprob), best first, ties to the lowest id."""
    rank: int
    """The token's place in that order, from 1."""


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One delivered token. The texts of a choice's tokens, joined, are its text."""

    token_id: int
    text: str
    """The characters that this token completed (after stop strings were cut)."""
    source: TokenSource
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class SpeculationMetrics:
    """What drafting did for one choice; counts delivered tokens only."""

    draft_exit_layer: int | None
    """Depth of the early-exit drafts; None when only n-grams drafted."""
    num_drafts: int
    """Rounds in which drafts were verified."""
    num_draft_tokens: int
    num_accepted_tokens: int
    accepted_per_position: tuple[int, ...]
    """How often the draft at each position was accepted; as long as the longest draft."""

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted share of the drafted tokens."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per verified round, verification's own token included."""
        return 1.0 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else 1.0


@dataclass(frozen=True, slots=True)
class ChoiceMetrics:
    """The timing and accounting of one finished choice."""

    exit_layer: int
    seed: int
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens whose K/V came from the prefix cache at first admission."""
    num_generated_tokens: int
    queue_time_s: float
    time_to_first_token_s: float | None
    generation_time_s: float
    """From arrival to the last token."""
    mean_itl_s: float | None
    """Mean time between tokens after the first; None below two tokens."""
    speculation: SpeculationMetrics | None
    """None if nothing was drafted."""


@dataclass(frozen=True, slots=True)
class ChoiceOutput:
    """What one engine step brought for one choice of a request.

    `tokens` may be empty only together with a finish reason or prompt logprobs. Exactly one
    output of each choice has a finish reason, and it is the last.
    """

    request_id: str
    index: int
    tokens: tuple[TokenOutput, ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the choice; None for EOS and length."""
    metrics: ChoiceMetrics | None = None
    """Set with every finish reason but a crash's: a dead engine has nothing left to measure."""
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    """In a choice's first output, when asked for; the first entry is None."""
    error: str | None = None
    """What went wrong, with `FinishReason.ERROR`."""
    error_code: str | None = None
    """Machine-readable reason beside `error`: `engine_dead` or `shutting_down`."""

"""What a server answers, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class TokenSource(StrEnum):
    """How a token came about."""

    DRAFT = "draft"
    """Drafted, and confirmed by verification."""
    CORRECTED = "corrected"
    """Verification's own token in place of the first rejected draft."""
    BONUS = "bonus"
    """Verification's token after every draft was accepted."""
    PLAIN = "plain"
    """Sampled in a round without drafts."""


@dataclass(frozen=True, slots=True)
class SourcedToken:
    """One token, the text that it completed, and its source."""

    token_id: int
    text: str
    source: TokenSource


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    """Emitted tokens; rejected drafts never count."""
    total_tokens: int
    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


@dataclass(frozen=True, slots=True)
class SpeculationMetrics:
    """What drafting did for one choice."""

    draft_exit_layer: int | None
    """None when only n-grams drafted."""
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    draft_acceptance_rate: float
    mean_acceptance_length: float
    """Tokens per verified round, verification's own included."""
    accepted_per_position: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Timing and accounting of one choice, by the server's clock."""

    exit_layer: int
    time_to_first_token_ms: float | None
    generation_time_ms: float
    queue_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float | None
    seed: int
    """Sent with n = 1 it replays the choice."""
    speculation: SpeculationMetrics | None
    """None if nothing was drafted."""


@dataclass(frozen=True, slots=True)
class CompletionLogprobs:
    """Logprobs of a completion's tokens, entry by entry."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[Mapping[str, float] | None, ...]
    text_offset: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of a chat completion with its logprob."""

    token: str
    logprob: float
    bytes: bytes | None
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprob:
    """One candidate at one position of a prompt."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = tuple[Mapping[int, PromptLogprob] | None, ...]
"""For each token of a prompt, token id → logprob; None for the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One answer to one prompt, or the part of it that a chunk brings."""

    index: int
    text: str
    finish_reason: str | None
    """`stop` or `length`; None in all chunks of a stream but the last."""
    stop_reason: str | int | None
    """The stop string or stop token id; None for end of sequence and length."""
    logprobs: CompletionLogprobs | None = None
    token_sources: tuple[SourcedToken, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    metrics: Metrics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatChoice:
    """One answer to a conversation, or the part of it that a chunk brings."""

    index: int
    role: str | None
    """In a stream, only in a choice's first chunk."""
    text: str
    finish_reason: str | None
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprob, ...] | None = None
    token_sources: tuple[SourcedToken, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    metrics: Metrics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Envelope:
    id: str
    created: int
    model: str
    system_fingerprint: str | None
    usage: Usage | None
    """Always there in a whole answer; in a stream, where it was asked for."""
    metrics: Metrics | None
    """Of the only choice, or of the choice that ends with this chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion(_Envelope):
    """The answer to a completion request."""

    choices: tuple[Choice, ...]

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text if self.choices else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionChunk(Completion):
    """One event of a streamed completion; `choices` is empty in the one that brings usage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletion(_Envelope):
    """The answer to a chat request."""

    choices: tuple[ChatChoice, ...]
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text if self.choices else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatChunk(ChatCompletion):
    """One event of a streamed chat; `choices` is empty in the one that brings usage."""


@dataclass(frozen=True, slots=True)
class Model:
    """A name under which the model is served."""

    id: str
    created: int
    max_model_len: int
    num_layers: int
    exit_layers: tuple[int, ...]
    """Exits that the server suggests; any from 1 to `num_layers` works."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as token ids."""

    tokens: tuple[int, ...]
    count: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the server takes requests, and why not."""

    is_ready: bool
    status: str
    """`ready`, or the code of the error: `loading`, `shutting_down`, `engine_dead`."""

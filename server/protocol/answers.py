"""The shape of answers, for /openapi.json; the tests hold real answers to it.

Fields with a default are there only when the request asks for them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]


class AnswerModel(BaseModel):
    """Base of every answer: no field that is not written down here."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetails(AnswerModel):
    """What went wrong; always all four."""

    message: str
    type: str
    param: str | None = Field(description="The dotted name of the field at fault.")
    code: str | None = Field(description="A short reason for programs.")


class ErrorAnswer(AnswerModel):
    """The one shape of an error; in a stream, an event of its own before `[DONE]`."""

    error: ErrorDetails


class PromptTokensDetails(AnswerModel):
    """More about the prompt's tokens."""

    cached_tokens: int = Field(description="Found in the prefix cache.")


class CompletionTokensDetails(AnswerModel):
    """How drafts fared."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int = Field(description="Not among `completion_tokens`.")


class Usage(AnswerModel):
    """What a request cost; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class SpeculationFigures(AnswerModel):
    """What drafting did for one choice."""

    draft_exit_layer: int | None = Field(description="Null where only n-grams drafted.")
    num_drafts: int = Field(description="Rounds in which drafts were verified.")
    num_draft_tokens: int
    num_accepted_tokens: int
    draft_acceptance_rate: float
    mean_acceptance_length: float = Field(description="Tokens per verified round.")
    accepted_per_position: list[int]


class Metrics(AnswerModel):
    """The figures of one choice, under `return_metrics`."""

    exit_layer: int
    time_to_first_token_ms: float | None
    generation_time_ms: float
    queue_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float | None
    seed: int = Field(description="Sent with `n: 1`, it replays the choice.")
    speculative_decoding: SpeculationFigures | None


class TokenSource(AnswerModel):
    """How a token came about."""

    token_id: int
    text: str
    source: Literal["draft", "corrected", "bonus", "plain"]


class PromptLogprob(AnswerModel):
    """A token at one position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For each token of the prompt: by token id, itself and the likeliest; null for the first."""


class TextLogprobs(AnswerModel):
    """Logprobs of a text completion, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class ChatTopLogprob(AnswerModel):
    """One alternative."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(ChatTopLogprob):
    """One generated token."""

    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(AnswerModel):
    """Logprobs of a chat's choice."""

    content: list[ChatLogprob]
    refusal: None


class Choice(AnswerModel):
    """What choices have in common; chunks have null for reasons until the last."""

    index: int
    finish_reason: FinishReason | None
    stop_reason: str | int | None = Field(
        description="The stop string or token that ended the choice."
    )
    token_sources: list[TokenSource] | None = None
    token_ids: list[int] | None = None
    metrics: Metrics | None = None


class CompletionChoice(Choice):
    """One text, or a piece of it."""

    text: str
    logprobs: TextLogprobs | None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class AssistantMessage(AnswerModel):
    """The answer to a conversation."""

    role: str
    content: str
    refusal: None


class MessageDelta(AnswerModel):
    """A piece of the message; the role comes with the first."""

    role: str | None = None
    content: str


class ChatChoice(Choice):
    """One answer."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class ChatChunkChoice(Choice):
    """A piece of one answer."""

    delta: MessageDelta
    logprobs: ChatLogprobs | None


class Envelope(AnswerModel):
    """What whole answers and chunks have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    metrics: Metrics | None = None


class CompletionAnswer(Envelope):
    """The answer to POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(Envelope):
    """One event of its stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatAnswer(Envelope):
    """The answer to POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatChunk(Envelope):
    """One event of its stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None


ANSWER_MODELS: tuple[type[AnswerModel], ...] = (
    ErrorAnswer,
    CompletionAnswer,
    CompletionChunk,
    ChatAnswer,
    ChatChunk,
)

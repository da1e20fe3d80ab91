"""What a request may say, as typed keyword options; ours first, then OpenAI's and vLLM's.

An option that is absent or None is not sent: the server's default holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""One prompt or several, each as text or as token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculative:
    """How tokens are drafted; never changes the tokens."""

    exit_layer: int | None = None
    """Draft depth, below the answering depth."""
    num_speculations: int | Literal["auto"] | None = None
    """Drafts per round, 0 to 16."""
    method: Literal["early_exit", "ngram", "auto"] | None = None

    def to_body(self) -> dict[str, Any]:
        """The object as the interface writes it."""
        fields = {
            "exit_layer": self.exit_layer,
            "num_speculations": self.num_speculations,
            "method": self.method,
        }
        return {name: value for name, value in fields.items() if value is not None}


class Message(TypedDict):
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    name: NotRequired[str]
    """Of the speaker; some chat templates use it."""


class StreamOptions(TypedDict, total=False):
    """What a stream carries besides text."""

    include_usage: bool
    continuous_usage_stats: bool


class CallOptions(TypedDict, total=False):
    """What concerns the client rather than the model."""

    timeout_s: float | None
    """Longest silence of the server for this call, in place of the client's own."""
    extra: Mapping[str, Any] | None
    """Further fields of the body, as they are."""


class GenerationOptions(CallOptions, total=False):
    """The options that completions and chats share."""

    exit_layer: int | None
    """Depth of the model that answers: faster and worse when lower."""
    speculative: bool | Literal["auto"] | Speculative | None
    """How to draft; never changes the tokens."""
    return_metrics: bool | None
    return_token_sources: bool | None

    model: str | None
    temperature: float | None
    top_p: float | None
    n: int | None
    stop: str | Sequence[str] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    echo: bool | None
    """Begin the answer with the prompt."""
    user: str | None

    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    stop_token_ids: Sequence[int] | None
    include_stop_str_in_output: bool | None
    ignore_eos: bool | None
    min_tokens: int | None
    skip_special_tokens: bool | None
    truncate_prompt_tokens: int | None
    allowed_token_ids: Sequence[int] | None
    prompt_logprobs: int | None
    return_token_ids: bool | None
    return_tokens_as_token_ids: bool | None
    add_special_tokens: bool | None
    priority: int | None
    request_id: str | None


class CompletionOptions(GenerationOptions, total=False):
    """The options of a completion."""

    max_tokens: int | None
    logprobs: int | None
    """Alternatives to report with each token's logprob, 0 to 5."""
    best_of: int | None


class ChatOptions(GenerationOptions, total=False):
    """The options of a chat completion."""

    max_completion_tokens: int | None
    max_tokens: int | None
    """The older name of `max_completion_tokens`."""
    logprobs: bool | None
    top_logprobs: int | None
    """Alternatives to report with each token's logprob, 0 to 20."""
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    """Go on with the final message instead of answering it."""
    chat_template_kwargs: Mapping[str, Any] | None
    """Further variables for the chat template."""


class CompletionStreamOptions(CompletionOptions, total=False):
    """The options of a streamed completion."""

    stream_options: StreamOptions | None
    """Usage is asked for unless this says otherwise."""


class ChatStreamOptions(ChatOptions, total=False):
    """The options of a streamed chat completion."""

    stream_options: StreamOptions | None
    """Usage is asked for unless this says otherwise."""


_NOT_IN_BODY = frozenset({"timeout_s", "extra"})


def request_body(kind: type[Any], options: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A body of `fields` and of the options that were given.

    `kind` is the TypedDict that lists the options; raises `TypeError` for any other.
    """
    known = kind.__required_keys__ | kind.__optional_keys__
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"unknown option {unknown[0]!r}; pass fields that are new in `extra`")
    body = {
        name: _plain(value)
        for name, value in {**fields, **options}.items()
        if value is not None and name not in _NOT_IN_BODY
    }
    return {**body, **(options.get("extra") or {})}


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, Speculative):
        return value.to_body()
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value

"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from server.chat_template import FIXED_VARIABLES
from server.protocol.base import RequestModel, invalid_field, validate
from server.protocol.generation import GenerationRequest
from server.protocol.refused import REFUSED_IN_CHAT, REFUSED_IN_MESSAGES, check_refused

MAX_TOP_LOGPROBS = 20


class TextPart(RequestModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _parse_content(value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise invalid_field("messages.content", "must be a text or a list of parts of type text")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise invalid_field("messages.content", f"of type {kind[:40]!r} is not supported")
        if not isinstance(part, dict):
            raise invalid_field("messages.content", "must hold objects of type text only")
        texts.append(validate(TextPart, part, "messages.content").text)
    return "\n".join(texts)


def _check_role(value: object) -> object:
    if value in ("tool", "function"):
        raise invalid_field("messages.role", f"{value!r} is not supported: there are no tools")
    return value


class ChatMessage(RequestModel):
    """One message; parts of type text are joined by line breaks."""

    refused = REFUSED_IN_MESSAGES

    role: Annotated[
        Literal["system", "developer", "user", "assistant"], BeforeValidator(_check_role)
    ]
    content: Annotated[
        str, PlainValidator(_parse_content, json_schema_input_type=str | list[TextPart])
    ]
    name: str | None = Field(default=None, description="Of the speaker; some templates use it.")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        if isinstance(data, dict):
            check_refused(cls.refused, data, "messages.")
        return data

    def for_template(self) -> dict[str, str]:
        """The message as templates know it."""
        message = {"role": self.role, "content": self.content}
        return message if self.name is None else {**message, "name": self.name}


class ChatCompletionRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    refused = REFUSED_IN_CHAT

    messages: Annotated[list[ChatMessage], Field(min_length=1)] = Field(
        examples=[[{"role": "user", "content": "Once upon a time"}]]
    )
    max_completion_tokens: int | None = Field(
        default=None, description="Default: up to the end of the model's context.", examples=[80]
    )
    max_tokens: int | None = Field(
        default=None, description="The older name of `max_completion_tokens`."
    )
    logprobs: bool = Field(default=False, description="Report each token's logprob.")
    top_logprobs: int = Field(
        default=0, ge=0, le=MAX_TOP_LOGPROBS, description="Alternatives beside each logprob."
    )
    add_special_tokens: bool = Field(
        default=False, description="Let the tokenizer add its own; templates mostly do so already."
    )
    add_generation_prompt: bool | None = Field(
        default=None,
        description="End the prompt with the beginning of an answer. Default: unless the final "
        "message is continued.",
    )
    continue_final_message: bool = Field(
        default=False, description="Go on with the final message instead of answering it."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further variables for the chat template."
    )

    @model_validator(mode="after")
    def _check_chat(self) -> Any:
        if self.top_logprobs and not self.logprobs:
            raise invalid_field("top_logprobs", "is only allowed together with logprobs: true")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid_field("add_generation_prompt", "contradicts continue_final_message")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise invalid_field("max_tokens", "contradicts max_completion_tokens")
        for name in sorted(FIXED_VARIABLES & self.chat_template_kwargs.keys()):
            raise invalid_field(f"chat_template_kwargs.{name}", "cannot be given in this way")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """As `max_completion_tokens` says, or the older `max_tokens`."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def num_logprobs(self) -> int | None:
        """As `logprobs` and `top_logprobs` say."""
        return self.top_logprobs if self.logprobs else None

    @property
    def engine_names(self) -> Mapping[str, str]:
        """The prompt is made of messages; its limit goes by whichever name was used."""
        older = self.max_completion_tokens is None
        limit = "max_tokens" if older else "max_completion_tokens"
        return {"prompt": "messages", "max_tokens": limit}

    @property
    def answers(self) -> bool:
        """Whether a new message is begun, rather than the final one gone on with."""
        asked = self.add_generation_prompt
        return not self.continue_final_message if asked is None else asked

    @property
    def role(self) -> str:
        """Who speaks in the answer."""
        return "assistant" if self.answers else self.messages[-1].role

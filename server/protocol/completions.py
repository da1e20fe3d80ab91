"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, model_validator

from server.protocol.base import invalid_field, is_integer
from server.protocol.generation import GenerationRequest
from server.protocol.refused import REFUSED_IN_COMPLETIONS

MAX_LOGPROBS = 5

Prompt = str | list[int]


def parse_prompts(value: object) -> list[Prompt]:
    """The prompts in any of OpenAI's four forms; raises `InvalidRequestError`."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise invalid_field(
            "prompt", "must be a string, a list of strings, or (a list of) token ids"
        )
    if all(is_integer(item) for item in value):
        return [value]
    if all(isinstance(item, str) for item in value):
        return value
    if all(
        isinstance(item, list) and item and all(is_integer(token) for token in item)
        for item in value
    ):
        return value
    raise invalid_field(
        "prompt", "must hold strings only, integers only, or non-empty lists of integers only"
    )


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    refused = REFUSED_IN_COMPLETIONS

    prompt: Annotated[
        list[Prompt],
        PlainValidator(
            parse_prompts,
            json_schema_input_type=str | list[str] | list[int] | list[list[int]],
        ),
    ] = Field(
        description="A text, several texts, token ids, or several lists of token ids.",
        examples=["Once upon a time"],
    )
    max_tokens: int = Field(default=16, json_schema_extra={"minimum": 0}, examples=[80])
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = Field(
        default=None, description="Report logprobs, with so many alternatives each."
    )
    best_of: int | None = Field(default=None, description="Only `n` itself is supported.")

    @model_validator(mode="after")
    def _check_best_of(self) -> Any:
        if self.best_of is not None and self.best_of != self.n:
            raise invalid_field("best_of", "is only supported where it equals n")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """As `max_tokens` says."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """As `logprobs` says."""
        return self.logprobs

    @property
    def num_scored(self) -> int | None:
        """As `prompt_logprobs` says; echoed prompts are scored like generated tokens."""
        asked = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((count for count in asked if count is not None), default=None)

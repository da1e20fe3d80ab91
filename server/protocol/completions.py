"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainValidator, model_validator

from server.protocol.base import invalid_field, is_integer
from server.protocol.generation import GenerationRequest

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

    prompt: Annotated[list[Prompt], PlainValidator(parse_prompts)]
    max_tokens: int = 16
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    echo: bool = False
    best_of: int | None = None

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise invalid_field("best_of", "is only supported where it equals n")
        return self

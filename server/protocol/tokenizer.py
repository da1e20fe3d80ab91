"""What the tokenizer's endpoints take and give; names are vLLM's."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar, TypedDict

from pydantic import Field

from server.protocol.base import RequestModel
from server.protocol.refused import Refused


class TokenizeRequest(RequestModel):
    """The body of POST /tokenize."""

    refused: ClassVar[Refused] = MappingProxyType({"messages": ()})

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = Field(
        default=False, description="Tell each token's name among logprobs too."
    )


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class TokenizeResponse(TypedDict):
    """Token ids, how many, and how many the model takes."""

    tokens: list[int]
    count: int
    max_model_len: int | None
    token_strs: list[str] | None
    """Each token's name among logprobs, if asked for."""


class DetokenizeResponse(TypedDict):
    """The text of token ids."""

    prompt: str


class TokenizerInfo(TypedDict):
    """What the model's files say of its tokenizer; null where they are silent."""

    tokenizer_class: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None

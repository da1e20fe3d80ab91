"""Logprobs in the three forms that answers carry them in."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.types import TokenLogprobs, TokenOutput
from server.choices import ChoicePart
from server.engine_api import Tokenizer

LOWEST_LOGPROB = -9999.0
"""How minus infinity is written, JSON having no word for it (vLLM does the same)."""

TokenName = Callable[[int], str]
"""Token id → the token's name in an answer."""


def token_id_name(token_id: int) -> str:
    """The name under `return_tokens_as_token_ids`."""
    return f"token_id:{token_id}"


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


def text_logprobs(
    part: ChoicePart, num_top: int, tokenizer: Tokenizer, name_of: TokenName
) -> dict[str, Any]:
    """The `logprobs` of a text completion; an echo's entries come first.

    Values are null where there are none: the prompt's first token.
    """
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []
    for token_id, scores, offset in _entries(part, tokenizer):
        name = name_of(token_id)
        tokens.append(name)
        text_offset.append(offset)
        token_logprobs.append(None if scores is None else _finite(scores.logprob))
        top_logprobs.append(None)
        if scores is not None:
            top = {name_of(other): _finite(value) for other, value in scores.top[:num_top]}
            top_logprobs[-1] = {**top, name: _finite(scores.logprob)}
    return {
        "tokens": tokens,
        "token_logprobs": token_logprobs,
        "top_logprobs": top_logprobs,
        "text_offset": text_offset,
    }


def _entries(
    part: ChoicePart, tokenizer: Tokenizer
) -> Iterator[tuple[int, TokenLogprobs | None, int]]:
    """Token id, scores and text offset of an echoed prompt's tokens and the part's own."""
    if part.echo is not None:
        ids = part.prompt.token_ids
        # A request that failed before its prompt was read has no scores.
        scores = part.prompt_logprobs or (None,) * len(ids)
        yield from zip(ids, scores, _echo_offsets(ids, part.echo, tokenizer), strict=True)
    offset = part.offset
    for token in part.tokens:
        yield token.token_id, token.logprobs, offset
        offset += len(token.text)


def _echo_offsets(token_ids: Sequence[int], text: str, tokenizer: Tokenizer) -> Iterator[int]:
    """For each token, how many characters of the prompt's text are complete before it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    num_characters = 0
    bytes_of = tokenizer.first_token_bytes
    for token_id in token_ids:
        yield min(num_characters, len(text))
        num_characters += len(decoder.decode(bytes_of(token_id)))
        if tokenizer.token_bytes(token_id):
            bytes_of = tokenizer.token_bytes


def chat_logprobs(
    tokens: Sequence[TokenOutput], num_top: int, tokenizer: Tokenizer, name_of: TokenName
) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": name_of(token_id),
            "logprob": _finite(logprob),
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    content = []
    for token in tokens:
        assert token.logprobs is not None, "the engine was asked for logprobs"
        top = [entry(other, value) for other, value in token.logprobs.top[:num_top]]
        content.append({**entry(token.token_id, token.logprobs.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def prompt_logprobs(
    scores: Sequence[TokenLogprobs | None], num_top: int, name_of: TokenName
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token, itself and the likeliest, by their ids.

    The first token, which nothing predicts, has null.
    """

    def entry(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        return {"logprob": _finite(logprob), "rank": rank, "decoded_token": name_of(token_id)}

    result: list[dict[str, Any] | None] = []
    for token in scores:
        if token is None:
            result.append(None)
            continue
        own = {str(token.token_id): entry(token.token_id, token.logprob, token.rank)}
        top = {
            str(other): entry(other, value, rank)
            for rank, (other, value) in enumerate(token.top[:num_top], start=1)
        }
        result.append({**own, **top})
    return result

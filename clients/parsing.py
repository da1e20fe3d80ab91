"""From JSON to the values of `clients.types`.

What does not fit raises `KeyError`, `TypeError` or `ValueError`; `clients.calls` turns those
into `ProtocolError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from clients.types import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    Choice,
    Completion,
    CompletionChunk,
    CompletionLogprobs,
    Metrics,
    Model,
    PromptLogprob,
    PromptLogprobs,
    SourcedToken,
    SpeculationMetrics,
    TokenLogprob,
    Tokens,
    TokenSource,
    Usage,
)

Json = Mapping[str, Any]
T = TypeVar("T")


def _optional(raw: Json, name: str, parse: Callable[[Any], T]) -> T | None:
    value = raw.get(name)
    return None if value is None else parse(value)


def usage(raw: Json) -> Usage:
    """A `usage` object."""
    prompt = raw.get("prompt_tokens_details") or {}
    completion = raw.get("completion_tokens_details") or {}
    return Usage(
        prompt_tokens=raw["prompt_tokens"],
        completion_tokens=raw["completion_tokens"],
        total_tokens=raw["total_tokens"],
        cached_tokens=prompt.get("cached_tokens") or 0,
        accepted_prediction_tokens=completion.get("accepted_prediction_tokens") or 0,
        rejected_prediction_tokens=completion.get("rejected_prediction_tokens") or 0,
    )


def _speculation(raw: Json) -> SpeculationMetrics:
    return SpeculationMetrics(
        draft_exit_layer=raw["draft_exit_layer"],
        num_drafts=raw["num_drafts"],
        num_draft_tokens=raw["num_draft_tokens"],
        num_accepted_tokens=raw["num_accepted_tokens"],
        draft_acceptance_rate=raw["draft_acceptance_rate"],
        mean_acceptance_length=raw["mean_acceptance_length"],
        accepted_per_position=tuple(raw["accepted_per_position"]),
    )


def metrics(raw: Json) -> Metrics:
    """A `metrics` object."""
    return Metrics(
        exit_layer=raw["exit_layer"],
        time_to_first_token_ms=raw["time_to_first_token_ms"],
        generation_time_ms=raw["generation_time_ms"],
        queue_time_ms=raw["queue_time_ms"],
        mean_itl_ms=raw["mean_itl_ms"],
        tokens_per_second=raw["tokens_per_second"],
        seed=raw["seed"],
        speculation=_optional(raw, "speculative_decoding", _speculation),
    )


def _token_sources(raw: list[Json]) -> tuple[SourcedToken, ...]:
    return tuple(
        SourcedToken(token["token_id"], token["text"], TokenSource(token["source"]))
        for token in raw
    )


def _completion_logprobs(raw: Json) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=tuple(raw["tokens"]),
        token_logprobs=tuple(raw["token_logprobs"]),
        top_logprobs=tuple(raw["top_logprobs"]),
        text_offset=tuple(raw["text_offset"]),
    )


def _token_logprob(raw: Json) -> TokenLogprob:
    return TokenLogprob(
        token=raw["token"],
        logprob=raw["logprob"],
        bytes=_optional(raw, "bytes", bytes),
        top_logprobs=tuple(map(_token_logprob, raw.get("top_logprobs") or ())),
    )


def _chat_logprobs(raw: Json) -> tuple[TokenLogprob, ...]:
    return tuple(map(_token_logprob, raw["content"] or ()))


def _prompt_logprobs(raw: list[Json | None]) -> PromptLogprobs:
    return tuple(
        None
        if position is None
        else {
            int(token_id): PromptLogprob(
                entry["logprob"], entry.get("rank"), entry.get("decoded_token")
            )
            for token_id, entry in position.items()
        }
        for position in raw
    )


def _prompt_facts(raw: Json) -> dict[str, Any]:
    """What is told of a prompt: in each choice of a completion, once in a chat."""
    return {
        "prompt_token_ids": _optional(raw, "prompt_token_ids", tuple),
        "prompt_logprobs": _optional(raw, "prompt_logprobs", _prompt_logprobs),
    }


def _shared(raw: Json) -> dict[str, Any]:
    """The fields that a choice has in completions and in chats."""
    return {
        "index": raw["index"],
        "finish_reason": raw.get("finish_reason"),
        "stop_reason": raw.get("stop_reason"),
        "token_sources": _optional(raw, "token_sources", _token_sources),
        "token_ids": _optional(raw, "token_ids", tuple),
        "metrics": _optional(raw, "metrics", metrics),
    }


def _choice(raw: Json) -> Choice:
    return Choice(
        **_shared(raw),
        **_prompt_facts(raw),
        text=raw["text"],
        logprobs=_optional(raw, "logprobs", _completion_logprobs),
    )


def _chat_choice(raw: Json) -> ChatChoice:
    message = raw["message"] if "message" in raw else raw["delta"]
    return ChatChoice(
        **_shared(raw),
        role=message.get("role"),
        text=message.get("content") or "",
        logprobs=_optional(raw, "logprobs", _chat_logprobs),
    )


def _envelope(raw: Json) -> dict[str, Any]:
    return {
        "id": raw["id"],
        "created": raw["created"],
        "model": raw["model"],
        "system_fingerprint": raw.get("system_fingerprint"),
        "usage": _optional(raw, "usage", usage),
        "metrics": _optional(raw, "metrics", metrics),
    }


def completion(raw: Json) -> Completion:
    """A whole completion."""
    return Completion(**_envelope(raw), choices=tuple(map(_choice, raw["choices"])))


def completion_chunk(raw: Json) -> CompletionChunk:
    """One event of a streamed completion."""
    return CompletionChunk(**_envelope(raw), choices=tuple(map(_choice, raw["choices"])))


def chat_completion(raw: Json) -> ChatCompletion:
    """A whole chat completion."""
    return ChatCompletion(
        **_envelope(raw), **_prompt_facts(raw), choices=tuple(map(_chat_choice, raw["choices"]))
    )


def chat_chunk(raw: Json) -> ChatChunk:
    """One event of a streamed chat."""
    return ChatChunk(
        **_envelope(raw), **_prompt_facts(raw), choices=tuple(map(_chat_choice, raw["choices"]))
    )


def models(raw: Json) -> tuple[Model, ...]:
    """The list of served names."""
    return tuple(
        Model(
            id=model["id"],
            created=model["created"],
            max_model_len=model["max_model_len"],
            num_layers=model["num_layers"],
            exit_layers=tuple(model["exit_layers"]),
        )
        for model in raw["data"]
    )


def tokens(raw: Json) -> Tokens:
    """The answer of /tokenize."""
    return Tokens(tuple(raw["tokens"]), raw["count"], raw["max_model_len"])

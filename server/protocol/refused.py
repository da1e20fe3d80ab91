"""Fields that are known by name and not honoured: refused, unless their value asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from server.protocol.errors import invalid_field

NO_EFFECT_FIELDS = frozenset(
    {
        "include_obfuscation",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Of billing, storage and transport, or about tools that there are none of: without effect."""

Neutral = tuple[Any, ...]
Refused = Mapping[str, Neutral]
"""Field → the values, besides null and the empty ones, that ask for nothing."""

_SHARED: dict[str, Neutral] = {
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "bad_words": (),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "truncation_side": ("left",),
    "logits_processors": (),
    "logprob_token_ids": (),
    "repetition_detection": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "cache_salt": (),
    "kv_transfer_params": (),
    "vllm_xargs": (),
    "tools": (),
    "tool_choice": ("none",),
    "functions": (),
    "function_call": ("none",),
    "suffix": (),
    "prompt_embeds": (),
}

REFUSED_IN_COMPLETIONS: Refused = MappingProxyType(
    {
        **_SHARED,
        "messages": (),
        "max_completion_tokens": (),
        "top_logprobs": (0,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "chat_template": (),
        "chat_template_kwargs": (),
    }
)

REFUSED_IN_CHAT: Refused = MappingProxyType(
    {
        **_SHARED,
        "prompt": (),
        "best_of": (1,),
        "chat_template": (),
        "documents": (),
        "audio": (),
        "modalities": (["text"],),
        "media_io_kwargs": (),
        "mm_processor_kwargs": (),
        "prediction": (),
        "moderation": (),
        "web_search_options": (),
        "reasoning_effort": ("none",),
        "include_reasoning": (True,),
        "thinking_token_budget": (-1,),
        "verbosity": ("medium",),
    }
)

REFUSED_IN_MESSAGES: Refused = MappingProxyType(
    {
        "tool_calls": (),
        "tool_call_id": (),
        "function_call": (),
        "audio": (),
        "refusal": (),
        "annotations": (),
    }
)


def asks_for_nothing(value: object, neutral: Neutral) -> bool:
    """Whether a field's value is null, empty or neutral, so that ignoring it honours it."""
    if value is None or (isinstance(value, (str, list, dict)) and not value):
        return True
    return any(type(value) is type(one) and value == one for one in neutral)


def check_refused(refused: Refused, raw: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `InvalidRequestError` for a field that is not honoured and asks for something."""
    for name, neutral in refused.items():
        if name in raw and not asks_for_nothing(raw[name], neutral):
            raise invalid_field(prefix + name, "is not supported")

"""What every body has in common: strict types, `null` for not given, errors that name the field.

Unknown fields are kept aside so that `unknown_fields` can name them. Whatever is wrong is raised
as `InvalidRequestError` with the dotted name of the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from engine.errors import InvalidRequestError

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
"""Billing and storage fields, accepted without effect."""

UNHONOURED_FIELDS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "suffix": (),
        "truncate_prompt_tokens": (),
        "allowed_token_ids": (),
        "prompt_logprobs": (),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "add_special_tokens": (True,),
        "priority": (0,),
        "request_id": (),
        "use_beam_search": (False,),
        "length_penalty": (1, 1.0),
        "early_stopping": (False,),
        "bad_words": (),
        "spaces_between_special_tokens": (True,),
        "detokenize": (True,),
        "logits_processors": (),
        "logprob_token_ids": (),
        "response_format": ({"type": "text"},),
        "structured_outputs": (),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "guided_decoding_backend": (),
        "guided_whitespace_pattern": (),
        "prompt_embeds": (),
        "cache_salt": (),
        "kv_transfer_params": (),
        "vllm_xargs": (),
        "messages": (),
        "max_completion_tokens": (),
        "top_logprobs": (),
        "tools": (),
        "tool_choice": ("none",),
        "functions": (),
        "function_call": ("none",),
    }
)
"""Fields that we know and do not honour → the values, besides null and the empty ones, that ask
for nothing."""

M = TypeVar("M", bound="RequestModel")


def invalid_field(param: str, message: str) -> InvalidRequestError:
    """The error of a field, named by its dotted name; `message` goes on from the name."""
    return InvalidRequestError(f"{param} {message}", param=param)


def is_integer(value: object) -> bool:
    """Whether a JSON value is an integer; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


class RequestModel(BaseModel):
    """Base of every body, and of the objects inside one."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_means_not_given(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


def asks_for_nothing(value: object, neutral: tuple[Any, ...]) -> bool:
    """Whether a field's value is null, empty or neutral, so that ignoring it honours it."""
    if value is None or (isinstance(value, (str, list, dict)) and not value):
        return True
    return any(type(value) is type(one) and value == one for one in neutral)


def check_unhonoured(raw: Mapping[str, Any]) -> None:
    """Raise `InvalidRequestError` for a field that we know, do not honour, and that asks."""
    for name, neutral in UNHONOURED_FIELDS.items():
        if name in raw and not asks_for_nothing(raw[name], neutral):
            raise invalid_field(name, "is not supported")


def validate(model: type[M], raw: Mapping[str, Any], prefix: str = "") -> M:
    """`raw` as a `model`; raises `InvalidRequestError` naming the first field at fault.

    The message never repeats the value. `prefix` is the dotted name of the object itself.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as failure:
        first = failure.errors(include_url=False, include_context=False, include_input=False)[0]
        parts = [prefix] if prefix else []
        parts += [str(part) for part in first["loc"]]
        names = [prefix] if prefix else []
        names += [part for part in first["loc"] if isinstance(part, str)]
        if first["type"] == "missing":
            message = f"{'.'.join(parts)} is required"
        else:
            message = f"{'.'.join(parts) or 'The body'}: {first['msg']}"
        raise InvalidRequestError(message, param=".".join(names) or None) from None


def parse_request(model: type[M], raw: Mapping[str, Any]) -> M:
    """A whole body as a `model`: fields that cannot be honoured refused, the rest validated."""
    check_unhonoured(raw)
    return validate(model, raw)


def unknown_fields(model: RequestModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that neither `model` nor we know, its objects' included."""
    for name in model.model_extra or {}:
        if name not in NO_EFFECT_FIELDS and name not in UNHONOURED_FIELDS:
            yield prefix + name
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, RequestModel):
            yield from unknown_fields(value, f"{prefix}{name}.")

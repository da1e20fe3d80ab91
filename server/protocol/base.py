"""What every body has in common: strict types, `null` for not given, errors that name the field.

Unknown fields are kept aside so that `unknown_fields` can name them. Whatever is wrong is raised
as `InvalidRequestError` with the dotted name of the field; indices are left out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from engine.errors import InvalidRequestError
from server.protocol.errors import invalid_field
from server.protocol.refused import NO_EFFECT_FIELDS, Refused, check_refused

M = TypeVar("M", bound="RequestModel")

__all__ = ["RequestModel", "invalid_field", "is_integer", "parse_request", "unknown_fields"]


_PLAIN: Mapping[str, str] = MappingProxyType(
    {
        "missing": "is required",
        "model_type": "must be an object",
        "dict_type": "must be an object",
        "list_type": "must be a list",
        "too_short": "must not be empty",
        "string_unicode": "holds a lone surrogate: it is not valid Unicode",
    }
)
"""Pydantic's kinds of errors whose own words speak of Python rather than of JSON."""


def is_integer(value: object) -> bool:
    """Whether a JSON value is an integer; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


class RequestModel(BaseModel):
    """Base of every body, and of the objects inside one."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)

    refused: ClassVar[Refused] = {}
    """Known fields that are not honoured; those of the objects inside are checked here."""

    @model_validator(mode="before")
    @classmethod
    def _null_means_not_given(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


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
        name, kind = ".".join(parts) or "The body", first["type"]
        message = f"{name} {_PLAIN[kind]}" if kind in _PLAIN else f"{name}: {first['msg']}"
        raise InvalidRequestError(message, param=".".join(names) or None) from None


def parse_request(model: type[M], raw: Mapping[str, Any]) -> M:
    """A whole body as a `model`: fields that cannot be honoured refused, the rest validated."""
    check_refused(model.refused, raw)
    return validate(model, raw)


def unknown_fields(model: RequestModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that neither `model` nor we know, its objects' included."""
    for name in model.model_extra or {}:
        if name not in NO_EFFECT_FIELDS and name not in model.refused:
            yield prefix + name
    for name in type(model).model_fields:
        value = getattr(model, name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, RequestModel):
                yield from unknown_fields(item, f"{prefix}{name}.")

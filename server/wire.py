"""JSON in and out: what bodies must be, and how ours are written."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.errors import InvalidRequestError

LINE_BREAKS = tuple((character, f"\\u{ord(character):04x}") for character in "\x85\u2028\u2029")
"""Characters that JSON leaves alone and that clients which split streams by Python's or
JavaScript's idea of a line break would trip over."""

SAFE_JSON_TYPES = ("application/json", "text/json")


def encode_json(value: object) -> bytes:
    """Compact UTF-8 JSON; raises `ValueError` for NaN and infinities, which JSON lacks."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in LINE_BREAKS:
        text = text.replace(character, escape)
    # A lone surrogate can only come from a client's own text in an error message.
    return text.encode("utf-8", errors="replace")


class JSONBody(Response):
    """A response with a JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return encode_json(content)


def _dotted_name_of_non_finite(value: Any, name: str = "") -> str | None:
    """Where in a parsed body the first NaN or infinity stands; list indices are left out."""
    if isinstance(value, float) and not math.isfinite(value):
        return name
    if isinstance(value, dict):
        parts = [(f"{name}.{key}" if name else key, item) for key, item in value.items()]
    else:
        parts = [(name, item) for item in value] if isinstance(value, list) else []
    found = (_dotted_name_of_non_finite(item, part) for part, item in parts)
    return next((part for part in found if part is not None), None)


def parse_json(body: bytes) -> Any:
    """The value of a JSON text; `InvalidRequestError` if it is none, or holds NaN."""
    constants: list[str] = []

    def note_constant(constant: str) -> float:
        constants.append(constant)
        return math.nan

    try:
        value = json.loads(body, parse_constant=note_constant)
        # Looked for only when there is one: bodies may hold long lists of token ids.
        if constants:
            name = _dotted_name_of_non_finite(value) or "The body"
            raise InvalidRequestError(
                f"{name} holds a number that JSON does not have (NaN or infinity)",
                param=None if name == "The body" else name,
            )
        return value
    except json.JSONDecodeError as error:
        raise InvalidRequestError(
            f"The body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError("The body is not valid UTF-8") from error
    except RecursionError as error:
        raise InvalidRequestError("The body is nested too deeply") from error
    except ValueError as error:  # An integer of more digits than Python converts.
        raise InvalidRequestError("The body holds a number that is too long") from error


async def read_object(request: Request) -> dict[str, Any]:
    """The request's body as a JSON object, whatever its Content-Type.

    A browser that sends another type skips the preflight by which its user is protected from
    other sites, so a type other than JSON together with `Origin` is refused.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    is_json = media_type in SAFE_JSON_TYPES or media_type.endswith("+json")
    if "origin" in request.headers and not is_json:
        raise InvalidRequestError("Requests from web pages need Content-Type: application/json")
    body = parse_json(await request.body())
    if not isinstance(body, dict):
        raise InvalidRequestError("The body must be a JSON object")
    return body

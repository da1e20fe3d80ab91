"""How a field is refused."""

from __future__ import annotations

from engine.errors import InvalidRequestError


def invalid_field(param: str, message: str) -> InvalidRequestError:
    """The error of a field, by its dotted name; `message` goes on from the name."""
    return InvalidRequestError(f"{param} {message}", param=param)

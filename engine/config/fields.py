"""Read one JSON object's fields, each refused by name where it is not what it must be."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

from engine.errors import ConfigError

MAX_SIZE = 2**31 - 1
"""Native code counts with 32 bits."""


def is_integer(value: object) -> TypeGuard[int]:
    """JSON's true and false are integers to Python, but not to us."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_positive_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number above zero."""
    return (isinstance(value, float) or is_integer(value)) and 0.0 < value <= sys.float_info.max


class Fields:
    """The fields of a JSON object; null is silence. Every method raises `ConfigError`."""

    def __init__(self, raw: Mapping[str, Any], place: str = "config.json") -> None:
        self._raw = raw
        self._place = place

    def get(self, name: str, default: Any = None) -> Any:
        """A value of any kind; an error where it is silent and there is no default."""
        value = self._raw.get(name)
        if value is None and default is None:
            raise ConfigError(f"{self._place} lacks {name}")
        return default if value is None else value

    def has(self, name: str) -> bool:
        """Whether the field is there, and not null."""
        return self._raw.get(name) is not None

    def says(self, name: str) -> bool:
        """Whether the field is there, and neither null nor false nor empty."""
        return bool(self._raw.get(name))

    def size(self, name: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """A positive integer, of at most `most`."""
        value = self.get(name, default)
        if not is_integer(value) or value < 1:
            raise ConfigError(f"{name} must be a positive integer, not {value!r}")
        if value > most:
            raise ConfigError(f"{name} must be at most {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(name, default)
        if not is_positive_number(value):
            raise ConfigError(f"{name} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, not {value!r}")
        return value

    def section(self, name: str) -> Fields:
        """An object within the object; empty where it is silent."""
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} must be an object, not {value!r}")
        return Fields(value, f"{self._place}: {name}")

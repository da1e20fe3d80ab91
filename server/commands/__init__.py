"""The commands of `bitskip`, one module each, and what they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from engine.errors import BitSkipError


@contextmanager
def clean_errors() -> Iterator[None]:
    """End the command with one line and exit code 1 on an error that its user can mend."""
    try:
        yield
    except (BitSkipError, OSError) as error:
        message = _text(error)
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"error: {message}", style="bold red", markup=False
        )
        raise typer.Exit(1) from None


def _text(error: Exception) -> str:
    """One that the system raised without Python's number of it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def parse_numbers(text: str, option: str) -> list[int]:
    """The numbers of a list like 3,6,9, as given to `option`."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list like 3,6,9", param_hint=option) from None


def parse_exits(text: str) -> list[int]:
    """The layers of a list like 3,6,9, as given to --exits."""
    return parse_numbers(text, "--exits")

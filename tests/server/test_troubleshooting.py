"""The README's table of messages quotes what the sources really say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.options_table import README

ROOT = README.parent
GAP = "…"
"""Stands for what is filled in, in the README and below."""


def quoted() -> list[str]:
    """The messages in the first column of the table."""
    section = README.read_text(encoding="utf-8").partition("## Troubleshooting")[2]
    section = section.partition("\n## ")[0]
    found = re.findall(r"^\| `(.+?)` \|", section, flags=re.MULTILINE)
    assert len(found) >= 10
    return found


def messages(file: Path) -> Iterator[str]:
    """Every text of a source file, with gaps where values are filled in."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sdg]|%\.\d+f", GAP, node.value)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    files = [file for name in ("server", "engine") for file in (ROOT / name).rglob("*.py")]
    return [text for file in files for text in messages(file)]


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_exists(message: str, texts: list[str]) -> None:
    # The system's own words, and what follows a gap at the end, are put in at run time.
    parts = message.replace("Address already in use", GAP).split(GAP)
    pattern = re.compile(".*?".join(re.escape(part) for part in parts), flags=re.DOTALL)
    # A message may be put together from several texts.
    pieces = [part for part in parts if len(part.strip()) > 3]
    whole = any(pattern.search(text) for text in texts)
    assert whole or all(any(piece in text for text in texts) for piece in pieces), message

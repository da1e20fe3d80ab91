"""Text files that hold documents, for training and for evaluation."""

from __future__ import annotations

import lzma
from pathlib import Path

from engine.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"
"""Separates documents in a file, on a line of its own, and ends them in a token stream."""


def read_documents(path: Path) -> list[str]:
    """The documents of a UTF-8 text file (`.xz` too), stripped, empty ones left out.

    Raises `ConfigError` when the file cannot be read or holds no text.
    """
    try:
        raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(f"data file {path} cannot be read: {reason or error}") from error
    documents = [document.strip() for document in text.split(END_OF_TEXT)]
    documents = [document for document in documents if document]
    if not documents:
        raise ConfigError(f"data file {path} holds no text")
    return documents

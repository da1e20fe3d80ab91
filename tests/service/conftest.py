"""One served model for all tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.chat_model import serving_chat
from support.served_process import ServedProcess, serving, write_packed_model


@pytest.fixture(scope="session")
def packed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny packed checkpoint; leave it as it is."""
    return write_packed_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def served(packed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    """`bitskip serve` of `packed_model`; leave it as it is."""
    with serving(packed_model, tmp_path_factory.mktemp("logs") / "served.log") as running:
        yield running


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    """`bitskip serve` of a model that can chat, one choice at a time; leave it as it is."""
    with serving_chat(tmp_path_factory.mktemp("chat"), "--max-num-seqs", "1") as running:
        yield running

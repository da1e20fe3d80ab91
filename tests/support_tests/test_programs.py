"""A missing program skips a developer's test, and fails CI's."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.programs import program


def test_finds_what_is_installed() -> None:
    assert Path(program("sh", "dash")).name == "sh"


def test_skips_what_is_missing_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no-such-program .* package nothing"):
        program("no-such-program", "nothing")


def test_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="not installed"):
        program("no-such-program", "nothing")

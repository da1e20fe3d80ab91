"""Serving where torch is not installed, as in the CPU image."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.backend_variants import needs_native
from support.served_process import ROOT, environment, serving

WITHOUT = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
"""Python then says that there is no such module."""
BITSKIP = f"{WITHOUT} from server.cli import main; main()"
NO_KERNELS = "import engine.backends.registry as r; r.has_native_kernels = lambda: False; "


def test_the_packages_that_serving_installs_have_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    assert "numpy" in names
    assert not names & {"torch", "transformers"}


@needs_native
def test_the_native_backend_serves(packed_model: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-c", BITSKIP)
    with serving(packed_model, tmp_path / "log", command=command) as served:
        answer = served.complete(prompt="x", max_tokens=5, ignore_eos=True, logprobs=1)
    assert answer["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("code", "arguments", "hints"),
    [
        (BITSKIP, ("serve", "--backend", "reference"), ("'bitskip-server[torch]'",)),
        (WITHOUT + NO_KERNELS + BITSKIP, ("serve",), ("C++ compiler", "'bitskip-server[torch]'")),
        (BITSKIP, ("train", "OUT", "--data", "x", "--steps", "1"), ("'bitskip-server[torch]'",)),
    ],
)
def test_what_needs_torch_says_so(
    code: str, arguments: tuple[str, ...], hints: tuple[str, ...], tmp_path: Path
) -> None:
    given = [str(tmp_path) if argument == "OUT" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, *given, *(["--port", "0"] if "serve" in given else [])],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert all(hint in line for hint in hints)

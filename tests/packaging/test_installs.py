"""Every recipe that installs packages keeps to the constraints.

An install that misses them would fetch torch's newest CUDA build: gigabytes, and not the release
that was tested.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INDEX = "https://index.example/cpu"


def dry_run(*arguments: str) -> list[str]:
    """The pip installs that make would do on a fresh machine, one line each."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # The tests may run under a make whose variables must not reach this one.
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "TORCH_INDEX"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    done = subprocess.run(
        ["make", "--dry-run", "VENV=.no-such-environment", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [line for line in lines if "pip install" in line]


@pytest.mark.parametrize(
    ("target", "num_installs"), [("serve", 2), ("test", 3), ("check", 3), ("bench", 3)]
)
def test_make_installs_under_the_constraints(target: str, num_installs: int) -> None:
    installs = dry_run(target)
    assert len(installs) == num_installs
    assert all("-c .ci/constraints.txt" in line for line in installs)
    assert not any("--extra-index-url" in line for line in installs)


def test_make_takes_torch_from_the_index_that_was_named() -> None:
    installs = dry_run("test", f"TORCH_INDEX={INDEX}")
    assert len(installs) == 3
    assert all(f"--extra-index-url {INDEX}" in line for line in installs)


def test_constraints_pin_one_release_of_torch() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if re.fullmatch(r"torch==\d+\.\d+\.\d+", line)]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docker").glob("*Dockerfile")), ids=lambda p: p.name
)
def test_image_installs_under_the_constraints(path: Path) -> None:
    commands = re.split(r"\n|&&", path.read_text().replace("\\\n", " "))
    installs = [line for line in commands if re.search(r"\bpip\b.* install\b", line)]
    assert len(installs) == 2
    assert all("-c constraints.txt" in line or "--no-deps" in line for line in installs)


def test_ci_script_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

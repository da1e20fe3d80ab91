"""The native kernels' own test programs, compiled here under sanitizers and run."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.backend_variants import instruction_sets
from support.programs import program

SOURCES = Path(__file__).resolve().parent / "native"
OPTIONAL_SETS = ("avx512vnni", "avxvnni")
"""Compiled only where they can be run, to save time."""

Build = Callable[[str, str], Path]
"""(sanitizers, program) → the program."""


@pytest.fixture(scope="module")
def build(pytestconfig: pytest.Config) -> Build:
    assert pytestconfig.cache is not None
    cmake = program("cmake", "cmake")
    # Kept between sessions: only what has changed is compiled again.
    place = hashlib.sha256(str(SOURCES).encode()).hexdigest()[:8]
    root = pytestconfig.cache.mkdir(f"native-programs-{place}")

    def built(sanitizers: str, name: str) -> Path:
        directory = root / (sanitizers.replace(",", "-") or "plain")
        unwanted = [name for name in OPTIONAL_SETS if name not in instruction_sets()]
        switches = [f"-DBITSKIP_COMPILES_{name.upper()}=OFF" for name in unwanted]
        run(cmake, "-S", SOURCES, "-B", directory, f"-DSANITIZE={sanitizers}", *switches)
        run(cmake, "--build", directory, "--target", name, "--parallel")
        return directory / name

    return built


def run(*command: str | Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("kernel_tests", ()),
        ("isa_compare", ("60",)),
        ("model_tests", ("8",)),
        ("team_tests", ("300",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_addresses_and_arithmetic(build: Build, name: str, arguments: tuple[str, ...]) -> None:
    run(build("address,undefined", name), *arguments)


@pytest.mark.parametrize(
    ("name", "arguments"), [("team_tests", ("1000",)), ("model_tests", ("2",))]
)
def test_threads(build: Build, name: str, arguments: tuple[str, ...]) -> None:
    run(build("thread", name), *arguments)


def test_the_comparison_of_instruction_sets_notices_a_mutant(build: Build) -> None:
    done = subprocess.run(
        [build("address,undefined", "isa_compare"), "60", "mutant"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ternary" in done.stdout and "sum_exp" in done.stdout

"""The native backend is compiled wherever it can be, and only a missing compiler is forgiven."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

from engine.backends.registry import has_native_kernels

ROOT = Path(__file__).resolve().parents[2]
COMPILERS = ("c++", "g++", "clang++")
has_compiler = any(shutil.which(name) for name in COMPILERS)
has_headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What the package is built from, by itself."""
    copy = tmp_path / "sources"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "demo")
    for package in ("engine", "server", "clients"):
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def build_wheel(sources: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Have pip build a wheel into the folder of the sources, without a network."""
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *offline, "-w", str(sources), str(sources)],
        cwd=sources,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def holds_kernels(sources: Path) -> bool:
    (wheel,) = sources.glob("*.whl")
    with ZipFile(wheel) as archive:
        return any("/_native." in name and name.endswith(".so") for name in archive.namelist())


@pytest.mark.skipif(not (has_compiler and has_headers), reason="nothing can be compiled here")
def test_the_extension_is_here() -> None:
    assert has_native_kernels(), "a compiler is there, but the package was installed without it"


def test_without_a_compiler_it_installs_without_kernels(sources: Path) -> None:
    done = build_wheel(sources, CXX=str(sources / "no-such-compiler"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not holds_kernels(sources)


@pytest.mark.skipif(not (has_compiler and has_headers), reason="nothing can be compiled here")
def test_what_does_not_compile_does_not_install(sources: Path) -> None:
    broken = sources / "engine" / "backends" / "cpu" / "csrc" / "pages.cpp"
    broken.write_text("this is no C++\n" + broken.read_text())
    done = build_wheel(sources)
    assert done.returncode != 0
    assert "pages.cpp" in done.stdout + done.stderr
    assert not list(sources.glob("*.whl"))

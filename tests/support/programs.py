"""Programs that are not Python packages, for tests that run the real thing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def find(*names: str) -> str | None:
    """The first of these that is installed, in this Python's environment or on the path."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return next((found for name in names if (found := shutil.which(name, path=places))), None)


def program(name: str, package: str) -> str:
    """The path of a program that a package of Debian or of PyPI brings; CI has them all.

    Where it is missing, the test is skipped; in CI (CI=true) it fails, so that a set-up that
    lost it is not taken for a success.
    """
    path = find(name)
    if path is not None:
        return path
    missing = f"{name} is not installed: it comes with the package {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


def cross_tool(*names: str) -> str:
    """The path of one of these tools for other processors, which not even CI need have."""
    path = find(*names)
    if path is None:
        pytest.skip(f"{' or '.join(names)} is not installed")
    return path

"""Programs that are not Python packages, for tests that run the real thing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def program(name: str, package: str) -> str:
    """The path of a program that a package of Debian or of PyPI brings; CI has them all.

    Where it is missing, the test is skipped; in CI (CI=true) it fails, so that a set-up that
    lost it is not taken for a success.
    """
    beside_python = Path(sys.executable).parent
    path = shutil.which(name, path=f"{beside_python}{os.pathsep}{os.environ['PATH']}")
    if path is not None:
        return path
    missing = f"{name} is not installed: it comes with the package {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)

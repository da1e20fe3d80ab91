"""Programs that are not Python packages, for tests that run the real thing."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str, package: str) -> str:
    """The path of a program of a Debian package, which CI installs.

    Where it is missing, the test is skipped; in CI (CI=true) it fails, so that a set-up that
    lost it is not taken for a success.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    missing = f"{name} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)

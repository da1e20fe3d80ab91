"""The version of this package, as installed."""

from __future__ import annotations

from functools import cache
from importlib import metadata

DISTRIBUTION = "bitskip-server"


@cache
def package_version() -> str:
    """The installed distribution's version; `0+source` in a checkout that is not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+source"

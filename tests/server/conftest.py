"""One server for all tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from support.live_server import LiveServer, live_server


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server with the default fake engine; leave it as it is."""
    with live_server() as running:
        yield running


@pytest.fixture(scope="session")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    """An HTTP client of `server`."""
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http

"""Both kinds of client, and servers for them to talk to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from clients.retries import RetryPolicy
from support.client_drivers import DRIVERS, Connect, Driver, driving
from support.live_server import LiveServer, live_server
from support.served_process import ServedProcess, serving

AT_ONCE = RetryPolicy(max_retries=2, initial_delay_s=0.001)


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server over the default fake engine; leave it as it is."""
    with live_server() as running:
        yield running


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    """The demo model in a process of its own; leave it as it is."""
    log = tmp_path_factory.mktemp("demo") / "served.log"
    with serving(None, log) as running:
        yield running


@pytest.fixture(params=sorted(DRIVERS))
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients of either kind, which retry without waiting."""
    with ExitStack() as stack:

        def make(url: str, **options: Any) -> Driver:
            return stack.enter_context(driving(request.param, url, **{"retry": AT_ONCE, **options}))

        yield make

"""One browser and one demo server for all tests of the playground."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.browser import Browser, chromium
from support.gateway import Gateway, gateway
from support.playground_page import PlaygroundPage
from support.served_process import ServedProcess, serving


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    """`bitskip serve` of the bundled model."""
    with serving(None, tmp_path_factory.mktemp("logs") / "demo.log") as running:
        yield running


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def front(demo: ServedProcess) -> Iterator[Gateway]:
    """A gateway before the demo server."""
    with gateway(demo.url) as running:
        yield running


@pytest.fixture
def page(browser: Browser, front: Gateway) -> Iterator[PlaygroundPage]:
    """The page, freshly loaded through the gateway; afterwards nobody else was asked."""
    opened = PlaygroundPage(browser, front.url)
    opened.load()
    yield opened
    opened.check_stayed_here()

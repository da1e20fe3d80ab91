"""The real server on a real socket, in a thread, over a fake engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from prometheus_client import CollectorRegistry

from server.app import create_app
from server.lifecycle import Lifecycle, address_of, bind
from server.settings import ServerSettings
from support.fake_async_engine import FakeAsyncEngine

T = TypeVar("T")

PATIENCE_S = 20.0
"""How long anything may take that should happen at once; only failing tests wait so long."""


def wait_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait for something that must become true; raises `AssertionError` if it does not."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


class LiveServer:
    """A server that runs until its thread ends."""

    def __init__(self, engine: FakeAsyncEngine, settings: ServerSettings) -> None:
        self.engine = engine
        self.exit_code: int | None = None
        bound = bind("127.0.0.1", 0)
        self.url = address_of(bound)
        app = create_app(engine, settings, CollectorRegistry())
        self.lifecycle = Lifecycle(engine, app, settings, bound)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        wait_until(self._is_listening)

    def _run(self) -> None:
        async def serve() -> int:
            self._loop = asyncio.get_running_loop()
            return await self.lifecycle.serve(on_ready=self._ready.set)

        self.exit_code = asyncio.run(serve())

    def _is_listening(self) -> bool:
        try:
            return httpx.get(f"{self.url}/version").status_code == 200
        except httpx.TransportError:
            return False

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the server's event loop."""

        async def run() -> T:
            return function()

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE_S)

    def join(self) -> None:
        """Wait for the end of a server that was told to shut down."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def close(self) -> None:
        """Shut down, by force if something still runs."""
        for _ in range(2):
            if self._thread.is_alive():
                self.call(self.lifecycle.request_shutdown)
                self._thread.join(1.0)
        self.join()


@contextmanager
def live_server(engine: FakeAsyncEngine | None = None, **settings: Any) -> Iterator[LiveServer]:
    """A server for the length of a `with`; served as "tiny" and "tiny-alias"."""
    options: dict[str, Any] = {"served_model_name": ("tiny", "tiny-alias"), **settings}
    server = LiveServer(engine or FakeAsyncEngine(), ServerSettings(**options))
    try:
        yield server
    finally:
        server.close()

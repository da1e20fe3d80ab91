"""The real server on a real socket, in a thread, over a fake engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from server.app import create_app
from server.engine_api import Engine
from server.lifecycle import Lifecycle
from server.listener import address_of, listening
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


def loaded(engine: FakeAsyncEngine) -> Future[Engine]:
    """The end of a loading that brought `engine`."""
    loading: Future[Engine] = Future()
    loading.set_result(engine)
    return loading


class LiveServer:
    """A server that runs until its thread ends.

    With `loading`, the model is still being loaded; set its result to `engine` to end that.
    """

    def __init__(
        self,
        engine: FakeAsyncEngine,
        settings: ServerSettings,
        loading: Future[Engine] | None = None,
    ) -> None:
        self.engine = engine
        self.exit_code: int | None = None
        self.error: Exception | None = None
        self._resources = ExitStack()
        bound = self._resources.enter_context(listening(settings))
        self.url = address_of(bound, tls=settings.ssl_certfile is not None)
        app = create_app(settings, CollectorRegistry())
        self.lifecycle = Lifecycle(loading or loaded(engine), app, settings, bound)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        if loading is None:
            assert self._ready.wait(PATIENCE_S)

    def _run(self) -> None:
        async def serve() -> int:
            self._loop = asyncio.get_running_loop()
            return await self.lifecycle.serve(on_ready=lambda _: self._ready.set())

        with self._resources:
            try:
                self.exit_code = asyncio.run(serve())
            except Exception as error:
                self.error = error
                self._ready.set()

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
def live_server(
    engine: FakeAsyncEngine | None = None,
    loading: Future[Engine] | None = None,
    **settings: Any,
) -> Iterator[LiveServer]:
    """A server for the length of a `with`; served as "tiny" and "tiny-alias"."""
    options: dict[str, Any] = {
        "served_model_name": ("tiny", "tiny-alias"),
        "port": 0,
        **settings,
    }
    server = LiveServer(engine or FakeAsyncEngine(), ServerSettings(**options), loading)
    try:
        yield server
    finally:
        server.close()

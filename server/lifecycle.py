"""From a listening socket to the last answered request.

The listener answers from the start: 503 while the model is loaded, and 503 again while the
server drains. SIGTERM and SIGINT are ours, not uvicorn's: uvicorn closes its listener at once,
so clients would meet a closed port instead of a 503, and it knows nothing of the engine. Here
the first signal makes the engine drain while the listener stays open; only when every request
has ended is uvicorn told to exit. A second signal ends everything now; a third finds Python's
own handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from server.app import attach_engine
from server.engine_api import Engine
from server.settings import ServerSettings

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT_S = 5.0
"""What clients get to read the end of their answers once the engine has drained."""
FORCED_STOP_TIMEOUT_S = 2.0
"""What the engine gets to stop after a second signal."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to `Lifecycle`."""
        yield


def _tls_options(settings: ServerSettings) -> dict[str, Any]:
    """uvicorn's options for HTTPS; `server.listener.check_certificates` has tried the files."""
    if settings.ssl_certfile is None:
        return {}
    password = settings.ssl_keyfile_password
    return {
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile,
        "ssl_keyfile_password": password.get_secret_value() if password else None,
        "ssl_ca_certs": settings.ssl_ca_certs,
        "ssl_cert_reqs": ssl.CERT_REQUIRED if settings.ssl_ca_certs else ssl.CERT_NONE,
    }


class Lifecycle:
    """Runs one application on one listening socket, and the engine that is to come, once."""

    def __init__(
        self,
        loading: Future[Engine],
        app: FastAPI,
        settings: ServerSettings,
        bound: socket.socket,
    ) -> None:
        self._loading = loading
        self._app = app
        self._engine: Engine | None = None
        self._settings = settings
        self._socket = bound
        self._shutdown: asyncio.Task[None] | None = None
        self._is_forced = False
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=int(FLUSH_TIMEOUT_S),
                **_tls_options(settings),
            )
        )

    def run(self, on_ready: Callable[[Engine], None] | None = None) -> int:
        """Serve until told to stop; returns the exit code: 0, or 1 if requests were cut off."""
        factory = self._server.config.get_loop_factory()
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(self._run_with_signals(on_ready))

    async def _run_with_signals(self, on_ready: Callable[[Engine], None] | None) -> int:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.request_shutdown)
        return await self.serve(on_ready)

    async def serve(self, on_ready: Callable[[Engine], None] | None = None) -> int:
        """The same as `run`, on the running loop and without signals.

        Raises what kept the model from being loaded or the engine from starting. Told to shut
        down before, it does not wait for the model.
        """
        # Otherwise streams could be cut off by a signal that is ours to handle.
        AppStatus.disable_automatic_graceful_drain()
        listening = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        starting = asyncio.create_task(self._start(on_ready))
        try:
            await asyncio.wait({listening, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await listening
        finally:
            starting.cancel()
            self._server.should_exit = True
            await self._finish(listening)
        return int(self._is_forced)

    async def _start(self, on_ready: Callable[[Engine], None] | None) -> None:
        engine = await asyncio.wrap_future(self._loading)
        if self._shutdown is not None:
            return
        # Before anything is attached: an engine that does not start is never asked anything.
        await engine.start()
        self._engine = engine
        attach_engine(self._app, engine)
        if on_ready is not None:
            on_ready(engine)

    async def _finish(self, listening: asyncio.Task[None]) -> None:
        await asyncio.wait({listening})
        if self._shutdown is not None:
            self._shutdown.cancel()
        if self._engine is None:
            return
        limit_s = FORCED_STOP_TIMEOUT_S if self._is_forced else None
        try:
            await asyncio.wait_for(self._engine.stop(), limit_s)
        except TimeoutError:
            logger.warning("the engine did not stop within %g s", FORCED_STOP_TIMEOUT_S)

    def request_shutdown(self) -> None:
        """Drain, then exit; called a second time: exit now. To be called on the loop."""
        if self._shutdown is None:
            if self._engine is None:
                logger.info("shutting down: the model was still being loaded")
            else:
                logger.info(
                    "shutting down: running requests have %g s to finish",
                    self._settings.shutdown_timeout,
                )
            self._shutdown = asyncio.create_task(self._drain())
            return
        logger.warning("told twice to shut down: exiting now")
        self._is_forced = True
        self._server.should_exit = self._server.force_exit = True
        self._server.config.timeout_graceful_shutdown = 0
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)

    async def _drain(self) -> None:
        try:
            if self._engine is not None:
                await self._engine.drain(self._settings.shutdown_timeout)
        except Exception:
            logger.exception("draining failed")
        self._server.should_exit = True

"""From a listening socket to the last answered request.

SIGTERM and SIGINT are ours, not uvicorn's: uvicorn closes its listener at once, so clients
would meet a closed port instead of a 503, and it knows nothing of the engine. Here the first
signal makes the engine drain while the listener stays open; only when every request has ended
is uvicorn told to exit. A second signal ends everything now; a third finds Python's own
handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.types import ASGIApp

from engine.errors import ConfigError
from server.engine_api import Engine
from server.settings import ServerSettings

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT_S = 5.0
"""What clients get to read the end of their answers once the engine has drained."""
FORCED_STOP_TIMEOUT_S = 2.0
"""What the engine gets to stop after a second signal."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address; raises `ConfigError` saying why it cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sets TCP_NODELAY only where the protocol is named. Without it every answer waits
        # for the client's delayed acknowledgement of its headers: 40 ms.
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from error
    return bound


def address_of(bound: socket.socket) -> str:
    """The URL under which a bound socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to `Lifecycle`."""
        yield


class Lifecycle:
    """Runs one engine and one application on one socket, once."""

    def __init__(
        self, engine: Engine, app: ASGIApp, settings: ServerSettings, bound: socket.socket
    ) -> None:
        self._engine = engine
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
            )
        )

    def run(self, on_ready: Callable[[], None] | None = None) -> int:
        """Serve until told to stop; returns the exit code: 0, or 1 if requests were cut off."""
        factory = self._server.config.get_loop_factory()
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(self._run_with_signals(on_ready))

    async def _run_with_signals(self, on_ready: Callable[[], None] | None) -> int:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.request_shutdown)
        return await self.serve(on_ready)

    async def serve(self, on_ready: Callable[[], None] | None = None) -> int:
        """The same as `run`, on the running loop and without signals.

        The model has been loaded before; the listener opens beside the engine's start. Raises
        what keeps the engine from starting.
        """
        # Otherwise streams could be cut off by a signal that is ours to handle.
        AppStatus.disable_automatic_graceful_drain()
        listening = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        try:
            await self._engine.start()
            if on_ready is not None:
                on_ready()
            await listening
        finally:
            self._server.should_exit = True
            await self._finish(listening)
        return int(self._is_forced)

    async def _finish(self, listening: asyncio.Task[None]) -> None:
        await asyncio.wait({listening})
        if self._shutdown is not None:
            self._shutdown.cancel()
        limit_s = FORCED_STOP_TIMEOUT_S if self._is_forced else None
        try:
            await asyncio.wait_for(self._engine.stop(), limit_s)
        except TimeoutError:
            logger.warning("the engine did not stop within %g s", FORCED_STOP_TIMEOUT_S)

    def request_shutdown(self) -> None:
        """Drain, then exit; called a second time: exit now. To be called on the loop."""
        if self._shutdown is None:
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
            await self._engine.drain(self._settings.shutdown_timeout)
        except Exception:
            logger.exception("draining failed")
        self._server.should_exit = True

"""`bitskip serve`: a model behind OpenAI-style endpoints."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from server.commands import clean_errors
from server.commands.options import with_settings_as_options
from server.interpreter import settle_interpreter
from server.listener import address_of, listening
from server.settings import ServerSettings, load_settings, unknown_variables

if TYPE_CHECKING:
    from server.engine_api import Engine
    from server.loading import CheckCancelled

logger = logging.getLogger(__name__)

UNBOUNDED_WIDTH = 500
"""Columns for tables that go to a file, where a wrapped path cannot be copied."""
PROBES = ("/health", "/ping", "/metrics")
"""What monitors ask every few seconds; an answer of 200 is not worth a line."""
CANCEL_PATIENCE_S = 2.0
"""What loading gets to clean up when the server is told to end before it is ready."""


@with_settings_as_options
def serve(**given: Any) -> None:
    """Serve MODEL over OpenAI-style endpoints; without MODEL, the bundled demo.

    Every option is an environment variable and a key of the configuration file too.
    """
    with clean_errors():
        # An option that may be repeated is an empty list where it was not given.
        settings = load_settings(**{name: None if v == [] else v for name, v in given.items()})
        _configure_logging(settings.log_level)
        for name in unknown_variables():
            logger.warning("%s is in the environment, but no option of this server", name)
        with listening(settings) as bound:
            code, has_ended = _run(settings, bound)
    if not has_ended:
        # Native code or a download that cannot be told to stop: leave without waiting for it.
        logging.shutdown()
        os._exit(code)
    raise typer.Exit(code)


def _configure_logging(level: str) -> None:
    console = Console(stderr=True)
    if console.is_terminal:
        handler, line = RichHandler(console=console, show_path=False), "%(message)s"
    else:
        # One line per message, for files and for tools that collect logs.
        handler, line = logging.StreamHandler(), "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=level.upper(), format=line, handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").addFilter(_is_worth_a_line)
    logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
    logging.getLogger("asyncio").addFilter(_is_no_lost_write)
    if level == "info":
        # Its comings and goings repeat what we say ourselves.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Leave answered probes out; uvicorn logs (client, method, path, HTTP version, status)."""
    if not isinstance(record.args, tuple) or len(record.args) != 5:
        return True
    _, _, path, _, status = record.args
    return path not in PROBES or status != 200


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Leave out the traceback of each answer that a forced end cut off; one line counts them."""
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
        return False
    return not str(record.msg).startswith("Cancel %s running") or record.args != (0,)


def _is_no_lost_write(record: logging.LogRecord) -> bool:
    """Leave out asyncio's line for each write to a client that has just left."""
    return record.msg != "socket.send() raised exception."


def _run(settings: ServerSettings, bound: socket.socket) -> tuple[int, bool]:
    """Load and serve; returns the exit code, and whether loading has come to its end too."""
    from server.loading import BackgroundLoad

    address = address_of(bound, tls=settings.ssl_certfile is not None)
    loaded_from: list[Path] = []

    def load(check_cancelled: CheckCancelled) -> Engine:
        from engine.build import build_engine
        from server.model_source import find_model

        path = find_model(settings, check_cancelled)
        loaded_from.append(path)
        logger.info("loading %s; until then %s answers 503", path, address)
        return build_engine(
            path, settings.engine_config(), backend=settings.backend, threads=settings.threads
        )

    # FastAPI takes as long to import as a model to load, and loading is mostly native work.
    loading = BackgroundLoad(load)
    from prometheus_client import CollectorRegistry

    from server.app import create_app
    from server.lifecycle import Lifecycle

    def announce(engine: Engine) -> None:
        from server.summary import summary

        console = Console(stderr=True)
        if not console.is_terminal:
            console.width = UNBOUNDED_WIDTH
        settle_interpreter()
        console.print(summary(engine, settings, loaded_from[0], address))

    app = create_app(settings, CollectorRegistry())
    code = Lifecycle(loading.result, app, settings, bound).run(on_ready=announce)
    return code, loading.cancel(CANCEL_PATIENCE_S)

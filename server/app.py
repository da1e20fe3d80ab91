"""The application factory: one engine behind OpenAI-style endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from engine.errors import BitSkipError
from server.context import ServerContext, system_fingerprint
from server.engine_api import Engine
from server.errors import error_response, kind_of, status_response
from server.metrics import MetricsExporter
from server.middleware import RequestBoundary
from server.routes import completions, models, operations
from server.settings import ServerSettings
from server.version import package_version
from server.wire import JSONBody


async def _answer_error(_: Request, error: Exception) -> JSONBody:
    if not isinstance(error, BitSkipError) or kind_of(error).status == 500:
        raise error  # For `RequestBoundary`, which logs it with its traceback.
    return error_response(error)


async def _answer_http_error(_: Request, error: Exception) -> JSONBody:
    assert isinstance(error, HTTPException)
    return status_response(error.status_code, error.detail, error.headers)


def create_app(
    engine: Engine,
    settings: ServerSettings,
    registry: CollectorRegistry,
    *,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """An application that serves `engine` and exports its metrics to `registry`.

    Neither starts nor stops the engine: whoever made it does (see `server.lifecycle`).
    `registry` must not hold another application's metrics.
    """
    model_names = settings.served_model_name or (settings.default_model_name,)
    exporter = MetricsExporter(
        registry,
        model_name=model_names[0],
        model_config=engine.model_config,
        backend_name=engine.backend_name,
        head_dtype=engine.head_dtype,
        vllm_names=settings.vllm_metrics,
    )
    engine.add_stats_listener(exporter.observe)
    # No /docs here: FastAPI's page loads its scripts from a CDN.
    app = FastAPI(
        title="BitSkip Server",
        version=package_version(),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = ServerContext(
        engine=engine,
        settings=settings,
        exporter=exporter,
        model_names=model_names,
        fingerprint=system_fingerprint(engine),
        clock=clock,
        started_at=int(clock()),
    )
    app.add_middleware(RequestBoundary)
    app.add_exception_handler(BitSkipError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    for module in (completions, models, operations):
        app.include_router(module.router)
    return app

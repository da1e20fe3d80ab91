"""The application factory: one engine behind OpenAI-style endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from engine.errors import BitSkipError, ConfigError
from server import openapi
from server.chat_template import ChatTemplate
from server.context import ServerContext, system_fingerprint
from server.engine_api import Engine
from server.errors import error_response, kind_of, status_response
from server.metrics import MetricsExporter
from server.middleware import RequestBoundary
from server.routes import completions, models, operations
from server.settings import ServerSettings
from server.version import package_version
from server.wire import JSONBody

DESCRIPTION = (
    "OpenAI's completions and chat from early-exit models, with self-speculative decoding: "
    "`exit_layer` chooses the model's depth, `speculative` how its tokens are drafted, which never "
    "changes them."
)


async def _answer_error(_: Request, error: Exception) -> JSONBody:
    if not isinstance(error, BitSkipError) or kind_of(error).status == 500:
        raise error  # For `RequestBoundary`, which logs it with its traceback.
    return error_response(error)


async def _answer_http_error(_: Request, error: Exception) -> JSONBody:
    assert isinstance(error, HTTPException)
    return status_response(error.status_code, error.detail, error.headers)


def _chat_template(
    engine: Engine, settings: ServerSettings, clock: Callable[[], float]
) -> ChatTemplate | None:
    """The template of the settings, or else the model's own; raises `ConfigError`."""
    source, origin = engine.tokenizer.chat_template, "the model's chat template"
    if settings.chat_template is not None:
        origin = str(settings.chat_template)
        try:
            source = settings.chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{origin} cannot be read ({error})") from error
    if source is None:
        return None
    special_tokens = engine.tokenizer.special_tokens
    return ChatTemplate(source, special_tokens, clock=clock, origin=origin)


def create_app(
    engine: Engine,
    settings: ServerSettings,
    registry: CollectorRegistry,
    *,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """An application that serves `engine` and exports its metrics to `registry`.

    Neither starts nor stops the engine: whoever made it does (see `server.lifecycle`).
    `registry` must not hold another application's metrics. Raises `ConfigError` for a chat
    template that cannot be used.
    """
    model_names = settings.served_model_name or (settings.default_model_name,)
    exporter = MetricsExporter(
        registry, model_name=model_names[0], vllm_names=settings.vllm_metrics
    )
    exporter.describe_model(
        engine.model_config,
        backend_name=engine.backend_name,
        head_dtype=engine.head_dtype,
        draft_exit_layer=engine.config.draft_exit_layer,
    )
    engine.add_stats_listener(exporter.observe)
    # FastAPI's own page loads its scripts from a CDN; `server.openapi` has ours.
    app = FastAPI(
        title="BitSkip Server",
        version=package_version(),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = ServerContext(
        engine=engine,
        settings=settings,
        exporter=exporter,
        model_names=model_names,
        fingerprint=system_fingerprint(engine),
        chat_template=_chat_template(engine, settings, clock),
        clock=clock,
        started_at=int(clock()),
    )
    app.add_middleware(RequestBoundary)
    app.add_exception_handler(BitSkipError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    for module in (completions, models, operations, openapi):
        app.include_router(module.router)
    app.openapi = lru_cache(partial(openapi.build_openapi, app))
    return app

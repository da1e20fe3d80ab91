"""The application factory: one engine behind OpenAI-style endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from engine.errors import BitSkipError, ConfigError
from server import openapi
from server.admission import WaitingLine
from server.auth import METRICS_PATH, OPEN_PATHS, Authentication, key_hashes
from server.body_limit import BodyLimit
from server.chat_template import ChatTemplate
from server.context import ServerContext, system_fingerprint
from server.engine_api import Engine
from server.errors import error_response, kind_of, status_response
from server.metrics import MetricsExporter
from server.middleware import RequestBoundary
from server.routes import completions, models, operations, playground, tokenizer
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


def create_app(
    settings: ServerSettings,
    registry: CollectorRegistry,
    *,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """An application that answers 503 until `attach_engine` gives it something to serve.

    `registry`, to which its metrics go, must not hold another application's. Raises
    `ConfigError` for API keys that cannot be read.
    """
    # FastAPI's own page loads its scripts from a CDN; `server.openapi` has ours.
    app = FastAPI(
        title="BitSkip Server",
        version=package_version(),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.clock = clock
    app.state.context = None
    app.state.exporter = MetricsExporter(
        registry, model_name=settings.model_names[0], vllm_names=settings.vllm_metrics
    )
    _add_middleware(app, settings)
    app.add_exception_handler(BitSkipError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    for module in (completions, models, operations, tokenizer, playground, openapi):
        app.include_router(module.router)
    app.openapi = lru_cache(partial(openapi.build_openapi, app))
    return app


def _add_middleware(app: FastAPI, settings: ServerSettings) -> None:
    """From the inside out: what is added last sees a request first."""
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if hashes := key_hashes(settings):
        app.add_middleware(
            Authentication,
            hashes=hashes,
            open_paths=OPEN_PATHS - {METRICS_PATH} if settings.protect_metrics else OPEN_PATHS,
            on_reject=app.state.exporter.count_rejected,
        )
    elif settings.protect_metrics:
        raise ConfigError("protect_metrics needs an API key")
    app.add_middleware(RequestBoundary)
    if settings.allowed_origins:
        # The outermost: a page must be able to read errors too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )


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


def attach_engine(app: FastAPI, engine: Engine) -> None:
    """Have an application of `create_app` serve `engine`, once.

    Neither starts nor stops the engine: whoever made it does (see `server.lifecycle`).
    Raises `ConfigError` for a chat template that cannot be used.
    """
    state, settings = app.state, app.state.settings
    state.exporter.describe_model(
        engine.model_config,
        backend_name=engine.backend_name,
        head_dtype=engine.head_dtype,
        draft_exit_layer=engine.config.draft_exit_layer,
    )
    line = WaitingLine(
        max_choices=settings.max_queued_requests,
        max_tokens=settings.max_queued_prompt_tokens,
        max_running=engine.config.max_num_seqs,
    )
    engine.add_stats_listener(state.exporter.observe)
    engine.add_stats_listener(line.observe)
    state.context = ServerContext(
        engine=engine,
        settings=settings,
        exporter=state.exporter,
        line=line,
        model_names=settings.model_names,
        fingerprint=system_fingerprint(engine),
        chat_template=_chat_template(engine, settings, state.clock),
        clock=state.clock,
        started_at=int(state.clock()),
    )

"""What every route needs, built once by the application factory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import Request

from engine.errors import BitSkipError
from server.admission import WaitingLine
from server.chat_template import ChatTemplate
from server.engine_api import LOADING, Engine
from server.errors import ModelNotFoundError, rejection_reason, unavailable
from server.metrics import MetricsExporter
from server.settings import ServerSettings
from server.version import package_version


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The engine and the facts around it, shared by all requests."""

    engine: Engine
    settings: ServerSettings
    exporter: MetricsExporter
    line: WaitingLine
    """Those who wait for a place to run."""
    model_names: tuple[str, ...]
    """Names under which the model is served; the first is the one that responses show."""
    fingerprint: str
    """`system_fingerprint`: equal for equal software, backend, dtypes and model shape."""
    chat_template: ChatTemplate | None
    """What turns messages into prompts; None: chat is refused."""
    clock: Callable[[], float]
    """Unix time, in seconds."""
    started_at: int
    """Unix time at which the application was made."""

    def served_name(self, requested: str | None) -> str:
        """The name to answer with; raises `ModelNotFoundError` for one that is not served."""
        if requested is None:
            return self.model_names[0]
        if requested not in self.model_names:
            raise ModelNotFoundError(requested)
        return requested


def get_context(request: Request) -> ServerContext:
    """The context of the application that received the request.

    Raises `EngineLoadingError` while the model is being loaded.
    """
    context = request.app.state.context
    if context is None:
        raise unavailable(LOADING)
    return context


def get_exporter(request: Request) -> MetricsExporter:
    """The application's metrics, which are there from the start."""
    return request.app.state.exporter


@contextmanager
def rejections_counted(request: Request) -> Iterator[None]:
    """Count what the block raises as a rejected request, by its reason."""
    try:
        yield
    except BitSkipError as error:
        get_exporter(request).count_rejected(rejection_reason(error))
        raise


def system_fingerprint(engine: Engine) -> str:
    """A short digest of what decides the floats: version, backend, dtypes and the model's shape."""
    facts = (
        f"{package_version()} {engine.backend_name} {engine.head_dtype} {engine.linear_dtype} "
        f"{engine.kv_dtype} {engine.model_config}"
    )
    return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"

"""What every route needs, built once by the application factory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from server.chat_template import ChatTemplate
from server.engine_api import Engine
from server.errors import ModelNotFoundError
from server.metrics import MetricsExporter
from server.settings import ServerSettings
from server.version import package_version


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The engine and the facts around it, shared by all requests."""

    engine: Engine
    settings: ServerSettings
    exporter: MetricsExporter
    model_names: tuple[str, ...]
    """Names under which the model is served; the first is the one that responses show."""
    fingerprint: str
    """`system_fingerprint`: equal for equal software, backend and model shape."""
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
    """The context of the application that received the request."""
    return request.app.state.context


def system_fingerprint(engine: Engine) -> str:
    """A short digest of what decides the floats: version, backend and the model's shape."""
    facts = f"{package_version()} {engine.backend_name} {engine.model_config}"
    return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"

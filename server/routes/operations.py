"""What operators and their tools ask: health, version, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.context import get_context
from server.engine_api import READY
from server.errors import unavailable
from server.version import package_version
from server.wire import JSONBody

router = APIRouter()


# HEAD too: probes such as `wget --spider` use it.
@router.api_route("/health", methods=["GET", "HEAD"], response_model=None)
@router.api_route("/ping", methods=["GET", "HEAD"], response_model=None)
async def health(http: Request) -> JSONBody:
    """200 while requests are served; 503 while loading, draining or dead."""
    status = get_context(http).engine.status
    if status != READY:
        raise unavailable(status)
    return JSONBody({"status": READY})


@router.get("/version", response_model=None)
async def version() -> JSONBody:
    """The server's version."""
    return JSONBody({"version": package_version()})


@router.get("/metrics", response_model=None)
async def metrics(http: Request) -> Response:
    """Prometheus' text format, or OpenMetrics where the scraper prefers it."""
    exporter = get_context(http).exporter
    body, content_type = exporter.render(http.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})

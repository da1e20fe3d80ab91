"""What operators and their tools ask: health, load, version, metrics."""

from __future__ import annotations

from typing import TypedDict

from fastapi import APIRouter, Request, Response

from server.context import get_context, get_exporter
from server.engine_api import READY
from server.errors import unavailable
from server.version import package_version
from server.wire import JSONBody

router = APIRouter(tags=["operations"])


class LoadResponse(TypedDict):
    """What GET /load answers; choices are counted, except by `server_load`."""

    server_load: int
    num_requests_running: int
    num_requests_waiting: int
    num_waiting_prompt_tokens: int
    max_num_seqs: int
    max_queued_requests: int


# HEAD too: probes such as `wget --spider` use it.
@router.api_route("/health", methods=["GET", "HEAD"], response_model=None)
@router.api_route("/ping", methods=["GET", "HEAD"], response_model=None)
async def health(http: Request) -> JSONBody:
    """200 while requests are served; 503 while loading, draining or dead."""
    status = get_context(http).engine.status
    if status != READY:
        raise unavailable(status)
    return JSONBody({"status": READY})


@router.get("/load", response_model=None)
async def load(http: Request) -> JSONBody:
    """How busy the server is: for balancers, and for people without Prometheus.

    `server_load` is vLLM's name for the requests that are being answered.
    """
    context = get_context(http)
    answer: LoadResponse = {
        "server_load": context.line.num_requests,
        "num_requests_running": context.line.num_running,
        "num_requests_waiting": context.line.num_choices,
        "num_waiting_prompt_tokens": context.line.num_tokens,
        "max_num_seqs": context.engine.config.max_num_seqs,
        "max_queued_requests": context.settings.max_queued_requests,
    }
    return JSONBody(answer)


@router.get("/version", response_model=None)
async def version() -> JSONBody:
    """The server's version."""
    return JSONBody({"version": package_version()})


@router.get("/metrics", response_model=None)
async def metrics(http: Request) -> Response:
    """Prometheus' text format, or OpenMetrics where the scraper prefers it."""
    body, content_type = get_exporter(http).render(http.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})

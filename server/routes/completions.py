"""POST /v1/completions."""

from __future__ import annotations

import logging
import uuid

from fastapi import APIRouter, Request, Response

from engine.errors import BitSkipError
from server.completions import submit_completion
from server.context import get_context
from server.errors import rejection_reason
from server.protocol import CompletionRequest, parse_request, unknown_fields
from server.streaming import EventStream, completion_frames, unless_disconnected
from server.wire import JSONBody, read_object

logger = logging.getLogger(__name__)

router = APIRouter()


@router.post("/v1/completions", response_model=None)
async def create_completion(http: Request) -> Response:
    """Complete one or several prompts, whole or as a stream."""
    context = get_context(http)
    request_id = f"cmpl-{uuid.uuid4().hex}"
    try:
        request = parse_request(CompletionRequest, await read_object(http))
        if unknown := sorted(unknown_fields(request)):
            logger.warning("request %s: unknown fields ignored: %.500r", request_id, unknown)
        completion = await submit_completion(context, request, request_id)
    except BitSkipError as error:
        context.exporter.count_rejected(rejection_reason(error))
        raise
    if request.stream:
        frames = completion_frames(completion)
        return EventStream(frames, completion.abort, context.settings.ping_interval)
    try:
        return JSONBody(await unless_disconnected(http, completion.collect()))
    finally:
        completion.abort()

"""POST /v1/completions and POST /v1/chat/completions."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request, Response

from engine.errors import BitSkipError
from server.context import get_context
from server.errors import rejection_reason
from server.generation import CHAT, COMPLETIONS, Endpoint, R, submit
from server.protocol import parse_request, unknown_fields
from server.streaming import EventStream, event_frames, unless_disconnected
from server.wire import JSONBody, read_object

logger = logging.getLogger(__name__)

router = APIRouter()


@router.post("/v1/completions", response_model=None)
async def create_completion(http: Request) -> Response:
    """Complete one or several prompts, whole or as a stream."""
    return await _answer(http, COMPLETIONS)


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(http: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    return await _answer(http, CHAT)


async def _answer(http: Request, endpoint: Endpoint[R]) -> Response:
    context = get_context(http)
    try:
        request = parse_request(endpoint.request_model, await read_object(http))
        generation = await submit(context, endpoint, request)
    except BitSkipError as error:
        context.exporter.count_rejected(rejection_reason(error))
        raise
    if unknown := sorted(unknown_fields(request)):
        logger.warning("request %s: unknown fields ignored: %.500r", generation.id, unknown)
    if request.stream:
        frames = event_frames(generation)
        return EventStream(frames, generation.abort, context.settings.ping_interval)
    try:
        return JSONBody(await unless_disconnected(http, generation.collect()))
    finally:
        generation.abort()

"""POST /v1/completions and POST /v1/chat/completions."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request, Response

from server.context import ServerContext, get_context, rejections_counted
from server.generation import CHAT, COMPLETIONS, Endpoint, Generation, R, submit
from server.openapi import json_body, stream_responses
from server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    parse_request,
    unknown_fields,
)
from server.streaming import EventStream, event_frames, unless_disconnected
from server.wire import JSONBody, read_object

logger = logging.getLogger(__name__)

router = APIRouter(tags=["generation"])

COMPLETION_EXAMPLES = {
    "a story drafted by three layers": {
        "prompt": "Once upon a time",
        "max_tokens": 80,
        "temperature": 0.5,
        "speculative": {"exit_layer": 3, "num_speculations": 4},
        "return_metrics": True,
    },
    "a stream from the first six layers": {
        "prompt": "The cat",
        "exit_layer": 6,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_sources": True,
    },
    "the score of a prompt": {"prompt": "The dog", "max_tokens": 0, "echo": True, "logprobs": 2},
}
CHAT_EXAMPLES = {
    "a story": {
        "messages": [{"role": "user", "content": "Once upon a time"}],
        "max_completion_tokens": 80,
        "temperature": 0.5,
        "speculative": {"exit_layer": 3},
        "return_metrics": True,
    },
    "to be continued": {
        "messages": [
            {"role": "user", "content": "Tell me of a cat."},
            {"role": "assistant", "content": "There was a"},
        ],
        "continue_final_message": True,
        "max_completion_tokens": 40,
    },
}


@router.post(
    "/v1/completions",
    response_model=None,
    openapi_extra=json_body(CompletionRequest, COMPLETION_EXAMPLES),
    responses=stream_responses("CompletionAnswer", "CompletionChunk"),
)
async def create_completion(http: Request) -> Response:
    """Complete one or several prompts, whole or as a stream."""
    return await _answer(http, COMPLETIONS)


@router.post(
    "/v1/chat/completions",
    response_model=None,
    openapi_extra=json_body(ChatCompletionRequest, CHAT_EXAMPLES),
    responses=stream_responses("ChatAnswer", "ChatChunk"),
)
async def create_chat_completion(http: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    return await _answer(http, CHAT)


async def _answer(http: Request, endpoint: Endpoint[R]) -> Response:
    with rejections_counted(http):
        context = get_context(http)
        request = parse_request(endpoint.request_model, await read_object(http))
        generation = await submit(context, endpoint, request)
        await _wait_for_a_place(http, context, generation)
    if unknown := sorted(unknown_fields(request)):
        logger.warning("request %s: unknown fields ignored: %.500r", generation.id, unknown)
    if request.stream:
        frames = event_frames(generation)
        return EventStream(frames, generation.abort, context.settings.ping_interval)
    try:
        return JSONBody(await unless_disconnected(http, generation.collect()))
    finally:
        generation.abort()


async def _wait_for_a_place(http: Request, context: ServerContext, generation: Generation) -> None:
    """Where waiting is limited, hold the answer back until the engine has taken the request.

    Only so can a stream, too, be answered with a status of its own. Raises `QueueTimeoutError`,
    or `ClientDisconnect`; the request is over then.
    """
    timeout_s = context.settings.queue_timeout
    if timeout_s is None:
        return
    try:
        await unless_disconnected(http, generation.place.wait(timeout_s))
    except BaseException:
        generation.abort()
        raise

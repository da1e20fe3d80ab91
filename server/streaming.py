"""Server-sent events: frames, pings, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from server.errors import describe, kind_of
from server.generation import Generation
from server.wire import encode_json

logger = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def frame(value: object) -> bytes:
    """One event: `data:`, the JSON on one line, an empty line; LF only."""
    return b"data: " + encode_json(value) + b"\n\n"


async def event_frames(generation: Generation) -> AsyncGenerator[bytes, None]:
    """The events of a stream: chunks, an error if it failed, usage if asked for, `[DONE]`."""
    try:
        async with aclosing(generation.events()) as chunks:
            async for chunk in chunks:
                yield frame(chunk)
    except Exception as error:
        if not kind_of(error).is_public:
            logger.exception("request %s failed while streaming", generation.id)
        yield frame(describe(error))
    options = generation.request.stream_options
    if options is not None and options.include_usage:
        yield frame({**generation.envelope(), "usage": generation.usage.to_dict()})
    yield DONE


class Heartbeat:
    """Sends a comment after every `interval_s` in which nothing else was sent.

    Proxies close connections that are silent for long; a comment is invisible to clients. One
    timer watches the whole stream: a frame costs it two readings of the clock.
    """

    def __init__(self, send: Send, interval_s: float) -> None:
        self._send = send
        self._interval_s = interval_s
        self._now = asyncio.get_running_loop().time
        self._num_sending = 0
        self._is_open = False
        """Between the head of the response and its last part."""
        self._sent_s = self._now()

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        self._is_open = message.get("more_body", message["type"] == "http.response.start")
        self._num_sending += 1
        try:
            await self._send(message)
        finally:
            self._num_sending -= 1
            self._sent_s = self._now()

    async def beat(self) -> None:
        """Watch the stream; runs until cancelled."""
        while True:
            await asyncio.sleep(self._sent_s + self._interval_s - self._now())
            if self._now() - self._sent_s < self._interval_s:
                continue
            if self._is_open and not self._num_sending:
                await self.send({"type": "http.response.body", "body": PING, "more_body": True})
            else:
                # Not begun or just over; or the client reads slowly, and has enough to read.
                self._sent_s = self._now()


class EventStream(EventSourceResponse):
    """A stream of ready-made frames; `on_close` runs once it is over, however it ends.

    `EventSourceResponse` stops reading when the client leaves. Its own pings go out every so
    often even beside traffic, so they are off.
    """

    def __init__(
        self, frames: AsyncGenerator[bytes, None], on_close: Callable[[], None], ping_s: float
    ) -> None:
        super().__init__(frames, sep="\n", ping=0)
        self._on_close = on_close
        self._ping_s = ping_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        heartbeat = Heartbeat(send, self._ping_s)
        beating = asyncio.create_task(heartbeat.beat())
        try:
            await super().__call__(scope, receive, heartbeat.send)
        finally:
            beating.cancel()
            self._on_close()


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises `ClientDisconnect` if the client leaves first.

    The request's body must have been read before.
    """

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()

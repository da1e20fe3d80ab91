"""A limit for the size of bodies, checked while they are read."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLargeError

LINGER_S = 2.0
"""How long what is still sent after a refusal is read and dropped, before the connection closes:
closed at once, TCP would have many a client lose the answer."""


class BodyLimit:
    """Has reading a body of more than `max_bytes` raise `BodyTooLargeError`.

    A declared length is believed before a byte is read; a body in chunks is counted as it comes,
    so that at most one chunk too many is ever held. Plain ASGI.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            body = _LimitedBody(scope, receive, send, self._max_bytes)
            await self.app(scope, body.receive, body.send)
        else:
            await self.app(scope, receive, send)


class _LimitedBody:
    """One request's way in and out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
        declared = Headers(scope=scope).get("content-length", "")
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._num_bytes = int(declared) if declared.isdecimal() else 0
        """As declared until more has come."""
        self._num_received = 0
        self._is_refused = False

    async def receive(self) -> Message:
        """The next message; raises `BodyTooLargeError` in place of one too many."""
        if self._num_bytes <= self._max_bytes:
            message = await self._receive()
            self._num_received += len(message.get("body", b""))
            self._num_bytes = max(self._num_bytes, self._num_received)
        else:
            message = {}
        if self._num_bytes > self._max_bytes:
            self._is_refused = True
            raise BodyTooLargeError(self._max_bytes)
        return message

    async def send(self, message: Message) -> None:
        """Pass the answer on; after a refusal the connection is closed, but not before the end."""
        if not self._is_refused:
            await self._send(message)
            return
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send({**message, "more_body": True} if is_last else message)
        if is_last:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drop_the_rest(), LINGER_S)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drop_the_rest(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

"""Streams of chunks, for `for` and for `async for`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from typing import Generic

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from clients.calls import C, EventReader, transport_error
from clients.errors import ClientError, ProtocolError, ServerConnectionError, StreamInterruptedError
from clients.types import Usage


def _no_event(error: Exception | None, base_url: str) -> ClientError:
    """Why a response brought no event at all."""
    if isinstance(error, SSEError):  # One of httpx's transport errors, to go by its base.
        return ProtocolError(f"{base_url} answers with something else than a stream: {error}")
    if isinstance(error, httpx.HTTPError):
        return transport_error(error, base_url)
    return ServerConnectionError(f"{base_url} ended a stream before it began")


def _later_error(error: httpx.HTTPError, base_url: str) -> ClientError:
    if isinstance(error, httpx.TimeoutException):
        return transport_error(error, base_url)
    return _broken(str(error) or type(error).__name__)


def _broken(reason: str) -> StreamInterruptedError:
    return StreamInterruptedError(f"the stream broke off: {reason}")


class Stream(Iterator[C], Generic[C]):
    """The chunks of one answer as they come; close it, or use it in a `with`, to stop early.

    Iterating raises `APIError` where the server ends the request with an error, and
    `StreamInterruptedError` where the connection breaks: a stream that ends has ended well.
    """

    def __init__(self, reader: EventReader[C], base_url: str) -> None:
        """Wait for the first event; raises `ClientError` where none comes."""
        self._reader = reader
        self._base_url = base_url
        self._events = EventSource(reader.response).iter_sse()
        try:
            self._first: ServerSentEvent | None = next(self._events, None)
        except httpx.HTTPError as error:
            raise _no_event(error, base_url) from error
        if self._first is None:
            raise _no_event(None, base_url)

    @property
    def usage(self) -> Usage | None:
        """Usage of the request, known at the end of the stream."""
        return self._reader.usage

    def __next__(self) -> C:
        if self._reader.is_done or self._reader.response.is_closed:
            raise StopIteration
        try:
            chunk = self._reader.read(self._next_event().data)
        except BaseException:
            self.close()
            raise
        if chunk is None:
            # Read to the end, so that the connection can serve the next request.
            with suppress(httpx.HTTPError):
                for _ in self._events:
                    pass
            self.close()
            raise StopIteration
        return chunk

    def _next_event(self) -> ServerSentEvent:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return next(self._events)
        except StopIteration:
            raise _broken("it has no end mark") from None
        except httpx.HTTPError as error:
            raise _later_error(error, self._base_url) from error

    def close(self) -> None:
        """Stop reading; a request that still runs is ended by the server."""
        self._reader.response.close()

    def __enter__(self) -> Stream[C]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(AsyncIterator[C], Generic[C]):
    """`Stream` for `async for` and `async with`; make it with `open`."""

    def __init__(
        self,
        reader: EventReader[C],
        base_url: str,
        events: AsyncGenerator[ServerSentEvent, None],
        first: ServerSentEvent,
    ) -> None:
        self._reader = reader
        self._base_url = base_url
        self._events = events
        self._first: ServerSentEvent | None = first

    @classmethod
    async def open(cls, reader: EventReader[C], base_url: str) -> AsyncStream[C]:
        """Wait for the first event; raises `ClientError` where none comes."""
        events = EventSource(reader.response).aiter_sse()
        try:
            first = await anext(events, None)
        except httpx.HTTPError as error:
            raise _no_event(error, base_url) from error
        if first is None:
            raise _no_event(None, base_url)
        return cls(reader, base_url, events, first)

    @property
    def usage(self) -> Usage | None:
        """Usage of the request, known at the end of the stream."""
        return self._reader.usage

    async def __anext__(self) -> C:
        if self._reader.is_done or self._reader.response.is_closed:
            raise StopAsyncIteration
        try:
            chunk = self._reader.read((await self._next_event()).data)
        except BaseException:
            await self.close()
            raise
        if chunk is None:
            # Read to the end, so that the connection can serve the next request.
            with suppress(httpx.HTTPError):
                async for _ in self._events:
                    pass
            await self.close()
            raise StopAsyncIteration
        return chunk

    async def _next_event(self) -> ServerSentEvent:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            raise _broken("it has no end mark") from None
        except httpx.HTTPError as error:
            raise _later_error(error, self._base_url) from error

    async def close(self) -> None:
        """Stop reading; a request that still runs is ended by the server."""
        await self._events.aclose()
        await self._reader.response.aclose()

    async def __aenter__(self) -> AsyncStream[C]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

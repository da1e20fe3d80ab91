"""The synchronous and the asynchronous client behind one interface, so that one test does both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from clients import AsyncClient, Client
from clients.types import Usage


class Driver(Protocol):
    """A client that tests call by the name of its method."""

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What the method returns."""
        ...

    def stream(
        self, method: str, *arguments: Any, limit: int | None = None, **options: Any
    ) -> tuple[list[Any], Usage | None]:
        """The chunks of a stream, at most `limit`, and its usage."""
        ...


Connect = Callable[..., Driver]
"""Makes a client of a server's URL, with the client's own options."""


class SyncDriver:
    """Calls `Client`."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.client = Client(url, **options)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.client, method)(*arguments, **options)

    def stream(
        self, method: str, *arguments: Any, limit: int | None = None, **options: Any
    ) -> tuple[list[Any], Usage | None]:
        chunks = []
        with getattr(self.client, method)(*arguments, **options) as stream:
            for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == limit:
                    break
        assert list(stream) == []
        return chunks, stream.usage

    def close(self) -> None:
        self.client.close()


class AsyncDriver:
    """Calls `AsyncClient`, on an event loop of its own."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncClient(url, **options)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self.runner.run(getattr(self.client, method)(*arguments, **options))

    def stream(
        self, method: str, *arguments: Any, limit: int | None = None, **options: Any
    ) -> tuple[list[Any], Usage | None]:
        return self.runner.run(self._stream(method, *arguments, limit=limit, **options))

    async def _stream(
        self, method: str, *arguments: Any, limit: int | None, **options: Any
    ) -> tuple[list[Any], Usage | None]:
        chunks = []
        async with await getattr(self.client, method)(*arguments, **options) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == limit:
                    break
        assert [chunk async for chunk in stream] == []
        return chunks, stream.usage

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()


DRIVERS = {"sync": SyncDriver, "async": AsyncDriver}


@contextmanager
def driving(kind: str, url: str, **options: Any) -> Iterator[Driver]:
    """A client of the kind, `sync` or `async`, for the length of a `with`."""
    driver = DRIVERS[kind](url, options)
    try:
        yield driver
    finally:
        driver.close()

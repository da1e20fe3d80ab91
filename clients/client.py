"""The two clients: what `clients.calls` describes, sent over httpx."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, Unpack

import httpx

from clients import calls
from clients.calls import C, Call, EventReader, StreamCall, response_error, transport_error
from clients.errors import ClientError
from clients.options import (
    ChatOptions,
    ChatStreamOptions,
    CompletionOptions,
    CompletionStreamOptions,
    Message,
    Prompt,
)
from clients.retries import RetryPolicy
from clients.scrape import Scrape
from clients.streams import AsyncStream, Stream
from clients.types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    Health,
    Model,
    Tokens,
)

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"


def _checked_key(key: str) -> str:
    """The key without the line's end that often comes with it; the error does not show it."""
    stripped = key.strip()
    if not stripped or not stripped.isprintable():
        raise ValueError("the API key is empty or holds characters that no header may have")
    return stripped


@dataclass(frozen=True, slots=True)
class _Connection:
    """Where requests go, and how: the arguments that both clients take."""

    base_url: str
    headers: httpx.Headers
    connect_timeout_s: float
    timeout_s: float | None
    retry: RetryPolicy

    @staticmethod
    def of(
        base_url: str,
        api_key: str | None,
        headers: Mapping[str, str] | None,
        connect_timeout_s: float,
        timeout_s: float | None,
        retry: RetryPolicy | None,
    ) -> _Connection:
        trimmed = base_url.rstrip("/").removesuffix("/v1")
        if not trimmed.startswith(("http://", "https://")):
            raise ValueError(
                "the server's address (base_url) must begin with http:// or https://, "
                f"not be {base_url!r}"
            )
        own = {} if api_key is None else {"authorization": f"Bearer {_checked_key(api_key)}"}
        return _Connection(
            trimmed,
            httpx.Headers({**own, **(headers or {})}, encoding="utf-8"),
            connect_timeout_s,
            timeout_s,
            retry or RetryPolicy(),
        )

    def timeout(self, timeout_s: float | None) -> httpx.Timeout:
        silence_s = self.timeout_s if timeout_s is None else timeout_s
        return httpx.Timeout(silence_s, connect=self.connect_timeout_s, pool=None)

    def request(
        self, http: httpx.Client | httpx.AsyncClient, call: Call[T] | StreamCall[C]
    ) -> httpx.Request:
        is_stream = isinstance(call, StreamCall)
        return http.build_request(
            "POST" if is_stream else call.method,
            f"{self.base_url}{call.path}",
            json=call.body,
            headers={"accept": "text/event-stream"} if is_stream else None,
            timeout=self.timeout(call.timeout_s),
        )


_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


class Client:
    """A client of one server; a context manager. Threads may share it.

    `base_url` may end in `/v1`, as OpenAI's does. `uds` is the path of a Unix socket to connect
    to in place of the address. `timeout_s` is the longest silence of the server, within a stream
    too; None waits for ever. Every method raises `ClientError` (see `clients.errors`).
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        uds: str | None = None,
        connect_timeout_s: float = 5.0,
        timeout_s: float | None = 600.0,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        verify: bool = True,
    ) -> None:
        """Connect to nothing yet. `verify`: whether to check the server's certificate."""
        self._to = _Connection.of(base_url, api_key, headers, connect_timeout_s, timeout_s, retry)
        self._http = httpx.Client(
            # Left to httpx where possible: it minds the environment's proxies then.
            transport=None if uds is None else httpx.HTTPTransport(uds=uds, limits=_LIMITS),
            headers=self._to.headers,
            limits=_LIMITS,
            verify=verify,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def complete(self, prompt: Prompt, **options: Unpack[CompletionOptions]) -> Completion:
        """Complete one or several prompts."""
        return self._send(calls.complete(prompt, options))

    def stream(
        self, prompt: Prompt, **options: Unpack[CompletionStreamOptions]
    ) -> Stream[CompletionChunk]:
        """The same as a stream; returns with its first event."""
        return self._open(calls.stream(prompt, options))

    def chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> ChatCompletion:
        """Answer a conversation."""
        return self._send(calls.chat(messages, options))

    def stream_chat(
        self, messages: Sequence[Message], **options: Unpack[ChatStreamOptions]
    ) -> Stream[ChatChunk]:
        """The same as a stream; returns with its first event."""
        return self._open(calls.stream_chat(messages, options))

    def models(self) -> tuple[Model, ...]:
        """The names under which the model is served; answers show the first."""
        return self._send(calls.models())

    def tokenize(self, prompt: str, *, add_special_tokens: bool = True) -> Tokens:
        """The token ids of a text."""
        return self._send(calls.tokenize(prompt, add_special_tokens))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self._send(calls.detokenize(tokens))

    def health(self) -> Health:
        """Whether requests are taken; raises only where nobody answers."""
        return self._send(calls.health())

    def version(self) -> str:
        """The server's version."""
        return self._send(calls.version())

    def load(self) -> Mapping[str, float]:
        """How busy the server is."""
        return self._send(calls.load())

    def metrics(self) -> Scrape:
        """What Prometheus would scrape now."""
        return self._send(calls.metrics())

    def _send(self, call: Call[T]) -> T:
        num_failures = 0
        while True:
            try:
                try:
                    response = self._http.send(self._to.request(self._http, call))
                except httpx.HTTPError as error:
                    raise transport_error(error, self._to.base_url) from error
                return call.answer(response)
            except ClientError as error:
                num_failures += 1
                self._wait(num_failures, error)

    def _open(self, call: StreamCall[C]) -> Stream[C]:
        num_failures = 0
        while True:
            try:
                return self._try_to_open(call)
            except ClientError as error:
                num_failures += 1
                self._wait(num_failures, error)

    def _try_to_open(self, call: StreamCall[C]) -> Stream[C]:
        request = self._to.request(self._http, call)
        try:
            response = self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise transport_error(error, self._to.base_url) from error
        try:
            if response.status_code != 200:
                response.read()
                raise response_error(response)
            return Stream(EventReader(call, response), self._to.base_url)
        except BaseException:
            response.close()
            raise

    def _wait(self, num_failures: int, error: ClientError) -> None:
        delay_s = self._to.retry.delay_s(num_failures, error)
        if delay_s is None:
            raise error
        time.sleep(delay_s)


class AsyncClient:
    """`Client` for asyncio: the same arguments, the same methods, awaited."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        uds: str | None = None,
        connect_timeout_s: float = 5.0,
        timeout_s: float | None = 600.0,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        verify: bool = True,
    ) -> None:
        """Connect to nothing yet. `verify`: whether to check the server's certificate."""
        self._to = _Connection.of(base_url, api_key, headers, connect_timeout_s, timeout_s, retry)
        self._http = httpx.AsyncClient(
            # Left to httpx where possible: it minds the environment's proxies then.
            transport=None if uds is None else httpx.AsyncHTTPTransport(uds=uds, limits=_LIMITS),
            headers=self._to.headers,
            limits=_LIMITS,
            verify=verify,
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def complete(self, prompt: Prompt, **options: Unpack[CompletionOptions]) -> Completion:
        """Complete one or several prompts."""
        return await self._send(calls.complete(prompt, options))

    async def stream(
        self, prompt: Prompt, **options: Unpack[CompletionStreamOptions]
    ) -> AsyncStream[CompletionChunk]:
        """The same as a stream; returns with its first event."""
        return await self._open(calls.stream(prompt, options))

    async def chat(
        self, messages: Sequence[Message], **options: Unpack[ChatOptions]
    ) -> ChatCompletion:
        """Answer a conversation."""
        return await self._send(calls.chat(messages, options))

    async def stream_chat(
        self, messages: Sequence[Message], **options: Unpack[ChatStreamOptions]
    ) -> AsyncStream[ChatChunk]:
        """The same as a stream; returns with its first event."""
        return await self._open(calls.stream_chat(messages, options))

    async def models(self) -> tuple[Model, ...]:
        """The names under which the model is served; answers show the first."""
        return await self._send(calls.models())

    async def tokenize(self, prompt: str, *, add_special_tokens: bool = True) -> Tokens:
        """The token ids of a text."""
        return await self._send(calls.tokenize(prompt, add_special_tokens))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return await self._send(calls.detokenize(tokens))

    async def health(self) -> Health:
        """Whether requests are taken; raises only where nobody answers."""
        return await self._send(calls.health())

    async def version(self) -> str:
        """The server's version."""
        return await self._send(calls.version())

    async def load(self) -> Mapping[str, float]:
        """How busy the server is."""
        return await self._send(calls.load())

    async def metrics(self) -> Scrape:
        """What Prometheus would scrape now."""
        return await self._send(calls.metrics())

    async def _send(self, call: Call[T]) -> T:
        num_failures = 0
        while True:
            try:
                try:
                    response = await self._http.send(self._to.request(self._http, call))
                except httpx.HTTPError as error:
                    raise transport_error(error, self._to.base_url) from error
                return call.answer(response)
            except ClientError as error:
                num_failures += 1
                await self._wait(num_failures, error)

    async def _open(self, call: StreamCall[C]) -> AsyncStream[C]:
        num_failures = 0
        while True:
            try:
                return await self._try_to_open(call)
            except ClientError as error:
                num_failures += 1
                await self._wait(num_failures, error)

    async def _try_to_open(self, call: StreamCall[C]) -> AsyncStream[C]:
        request = self._to.request(self._http, call)
        try:
            response = await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise transport_error(error, self._to.base_url) from error
        try:
            if response.status_code != 200:
                await response.aread()
                raise response_error(response)
            return await AsyncStream.open(EventReader(call, response), self._to.base_url)
        except BaseException:
            await response.aclose()
            raise

    async def _wait(self, num_failures: int, error: ClientError) -> None:
        delay_s = self._to.retry.delay_s(num_failures, error)
        if delay_s is None:
            raise error
        await asyncio.sleep(delay_s)

"""Every request that a client can make, and how its answer is read: no I/O here.

The synchronous and the asynchronous client differ only in how they send these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from clients import parsing
from clients.errors import (
    APIError,
    ClientError,
    ProtocolError,
    ResponseTimeoutError,
    ServerConnectionError,
    api_error,
)
from clients.options import (
    ChatOptions,
    ChatStreamOptions,
    CompletionOptions,
    CompletionStreamOptions,
    Message,
    Prompt,
    request_body,
)
from clients.retries import retry_after_s
from clients.scrape import Scrape, parse_scrape
from clients.types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    Health,
    Model,
    Tokens,
    Usage,
)

T = TypeVar("T")
C = TypeVar("C", CompletionChunk, ChatChunk)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and what reads the response to it."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: dict[str, Any] | None = None
    timeout_s: float | None = None
    """Longest silence; None: the client's own."""
    expected: frozenset[int] = frozenset({200})
    """Statuses that are answers rather than errors."""

    def answer(self, response: httpx.Response) -> T:
        """The value of a complete response; raises `APIError` or `ProtocolError`."""
        if response.status_code not in self.expected:
            raise response_error(response)
        return checked(lambda: self.read(response), response.request.url)


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[C]):
    """One request whose answer is a stream of `C`."""

    path: str
    body: dict[str, Any]
    read: Callable[[Mapping[str, Any]], C]
    timeout_s: float | None = None


@dataclass(slots=True)
class EventReader(Generic[C]):
    """Reads the events of one stream, whoever fetches them."""

    call: StreamCall[C]
    response: httpx.Response
    usage: Usage | None = None
    """Usage of the whole request, once it has come."""
    is_done: bool = field(default=False)

    def read(self, data: str) -> C | None:
        """The chunk of one event; None for the last. Raises `APIError` for an error event."""
        if data == DONE:
            self.is_done = True
            return None
        raw = checked(lambda: json.loads(data), self.response.request.url)
        if isinstance(raw, dict) and "error" in raw:
            raise api_error(raw, request_id=self.response.headers.get("x-request-id"))
        chunk = checked(lambda: self.call.read(raw), self.response.request.url)
        self.usage = chunk.usage or self.usage
        return chunk


def checked(read: Callable[[], T], url: httpx.URL) -> T:
    """What `read` returns; `ProtocolError` where it stumbles over the answer."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(
            f"the answer of {url} is not what a BitSkip server says: {error!r}"
        ) from error


def response_error(response: httpx.Response) -> APIError:
    """The exception for a response, read to its end, whose status is not expected."""
    try:
        body = response.json()
    except ValueError:
        body = response.text
    return api_error(
        body,
        status=response.status_code,
        request_id=response.headers.get("x-request-id"),
        retry_after_s=retry_after_s(response.headers.get("retry-after")),
    )


def transport_error(error: httpx.HTTPError, base_url: str) -> ClientError:
    """Our exception for one of httpx's."""
    reason = str(error) or type(error).__name__
    if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        return ResponseTimeoutError(f"{base_url} was silent for too long ({reason})")
    return ServerConnectionError(f"no answer from {base_url} ({reason})")


def complete(prompt: Prompt, options: CompletionOptions) -> Call[Completion]:
    """POST /v1/completions."""
    body = request_body(CompletionOptions, options, prompt=prompt)
    return Call(
        "POST",
        COMPLETIONS,
        lambda response: parsing.completion(response.json()),
        body,
        options.get("timeout_s"),
    )


def stream(prompt: Prompt, options: CompletionStreamOptions) -> StreamCall[CompletionChunk]:
    """The same, streamed."""
    body = request_body(CompletionStreamOptions, options, prompt=prompt, **_STREAMED)
    return StreamCall(COMPLETIONS, body, parsing.completion_chunk, options.get("timeout_s"))


def chat(messages: Sequence[Message], options: ChatOptions) -> Call[ChatCompletion]:
    """POST /v1/chat/completions."""
    body = request_body(ChatOptions, options, messages=messages)
    return Call(
        "POST",
        CHAT,
        lambda response: parsing.chat_completion(response.json()),
        body,
        options.get("timeout_s"),
    )


def stream_chat(messages: Sequence[Message], options: ChatStreamOptions) -> StreamCall[ChatChunk]:
    """The same, streamed."""
    body = request_body(ChatStreamOptions, options, messages=messages, **_STREAMED)
    return StreamCall(CHAT, body, parsing.chat_chunk, options.get("timeout_s"))


_STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def models() -> Call[tuple[Model, ...]]:
    """GET /v1/models."""
    return Call("GET", "/v1/models", lambda response: parsing.models(response.json()))


def tokenize(prompt: str, add_special_tokens: bool) -> Call[Tokens]:
    """POST /tokenize."""
    body = {"prompt": prompt, "add_special_tokens": add_special_tokens}
    return Call("POST", "/tokenize", lambda response: parsing.tokens(response.json()), body)


def detokenize(tokens: Sequence[int]) -> Call[str]:
    """POST /detokenize."""
    return Call(
        "POST",
        "/detokenize",
        lambda response: str(response.json()["prompt"]),
        {"tokens": list(tokens)},
    )


def _health(response: httpx.Response) -> Health:
    if response.status_code == 200:
        return Health(True, str(response.json()["status"]))
    return Health(False, response_error(response).code or "unavailable")


def health() -> Call[Health]:
    """GET /health: 503 is an answer here."""
    return Call("GET", "/health", _health, expected=frozenset({200, 503}))


def version() -> Call[str]:
    """GET /version."""
    return Call("GET", "/version", lambda response: str(response.json()["version"]))


def load() -> Call[Mapping[str, float]]:
    """GET /load."""
    return Call("GET", "/load", lambda response: dict(response.json()))


def metrics() -> Call[Scrape]:
    """GET /metrics, in Prometheus' text format."""
    return Call("GET", "/metrics", lambda response: parse_scrape(response.text))

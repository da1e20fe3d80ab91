"""What talks to a running server over HTTP, and nothing else: clients import no engine code.

    from clients import Client

    with Client("http://127.0.0.1:8000") as client:
        answer = client.complete("Once upon a time", max_tokens=80, exit_layer=9)
        print(answer.text, answer.usage)

`AsyncClient` has the same methods for asyncio; `clients.errors` draws the tree of exceptions.
Importing this package is light: the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clients.client import AsyncClient, Client
    from clients.errors import APIError, ClientError
    from clients.options import Message, Speculative
    from clients.retries import NO_RETRIES, RetryPolicy
    from clients.streams import AsyncStream, Stream

_HOMES = {
    "AsyncClient": "clients.client",
    "Client": "clients.client",
    "APIError": "clients.errors",
    "ClientError": "clients.errors",
    "Message": "clients.options",
    "Speculative": "clients.options",
    "NO_RETRIES": "clients.retries",
    "RetryPolicy": "clients.retries",
    "AsyncStream": "clients.streams",
    "Stream": "clients.streams",
}

__all__ = [
    "NO_RETRIES",
    "APIError",
    "AsyncClient",
    "AsyncStream",
    "Client",
    "ClientError",
    "Message",
    "RetryPolicy",
    "Speculative",
    "Stream",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clients' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""What can go wrong between a client and its server, as exceptions.

ClientError
├── ServerConnectionError      nobody answers there, or the connection broke
│   └── StreamInterruptedError     it broke in the middle of a stream
├── ResponseTimeoutError       the server was silent for longer than the client's time-out
├── ProtocolError              the answer is none that this client understands
└── APIError                   the server says no (carries status, type, param, code, request_id)
    ├── BadRequestError            400: a request that can never be served as it is
    │   └── ContextLengthError         prompt and max_tokens do not fit the model's context
    ├── AuthenticationError        401: no API key, or a wrong one
    ├── NotFoundError              404: a model or a path that is not served
    ├── QueueTimeoutError          408: the request waited too long for its turn
    ├── RequestTooLargeError       413
    ├── QueueFullError             429: too many requests wait already
    ├── InternalServerError        500 and every other status from 500 on
    └── UnavailableError           503: loading, shutting down, or dead; `code` says which

An error may also come in the middle of a stream whose status was 200; it has the same classes,
chosen by its code and type, and no status.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class ClientError(Exception):
    """Base of everything that this package raises on purpose."""


class ServerConnectionError(ClientError):
    """Nobody answers at the address, or the connection broke before the answer."""


class StreamInterruptedError(ServerConnectionError):
    """The connection broke after the first event of a stream, so the rest is lost."""


class ResponseTimeoutError(ClientError):
    """The server sent nothing for longer than the client waits."""


class ProtocolError(ClientError):
    """An answer that does not follow the interface: another program may listen there."""


class APIError(ClientError):
    """The server refused or ended the request."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        """HTTP status; None for an error in the middle of a stream."""
        self.type = type
        self.param = param
        """Dotted name of the field at fault."""
        self.code = code
        """A short machine-readable reason."""
        self.request_id = request_id
        """What the server's log calls the request."""
        self.retry_after_s = retry_after_s
        """Seconds after which the server asks to try again."""


class BadRequestError(APIError):
    """A request that can never be served as it is; `param` names the field at fault."""


class ContextLengthError(BadRequestError):
    """The prompt and the tokens asked for do not fit the model's context."""


class AuthenticationError(APIError):
    """No API key, or one that the server does not know."""


class NotFoundError(APIError):
    """A model or a path that is not served."""


class QueueTimeoutError(APIError):
    """The request waited in the server's queue for longer than it allows."""


class RequestTooLargeError(APIError):
    """A body larger than the server takes."""


class QueueFullError(APIError):
    """Too many requests wait already."""


class InternalServerError(APIError):
    """The server failed; its log says why."""


class UnavailableError(APIError):
    """The server takes no requests now; `code` says why."""


BY_STATUS: Mapping[int, type[APIError]] = MappingProxyType(
    {
        400: BadRequestError,
        401: AuthenticationError,
        404: NotFoundError,
        408: QueueTimeoutError,
        413: RequestTooLargeError,
        429: QueueFullError,
        500: InternalServerError,
        503: UnavailableError,
    }
)
BY_CODE: Mapping[str, type[APIError]] = MappingProxyType(
    {
        "context_length_exceeded": ContextLengthError,
        "engine_dead": UnavailableError,
        "loading": UnavailableError,
        "queue_full": QueueFullError,
        "queue_timeout": QueueTimeoutError,
        "shutting_down": UnavailableError,
        "unavailable": UnavailableError,
    }
)
BY_TYPE: Mapping[str, type[APIError]] = MappingProxyType(
    {
        "invalid_request_error": BadRequestError,
        "server_error": InternalServerError,
        "unavailable_error": UnavailableError,
    }
)


def _error_class(status: int | None, kind: str | None, code: str | None) -> type[APIError]:
    if code is not None and code in BY_CODE:
        return BY_CODE[code]
    if status is None:
        return BY_TYPE.get(kind or "", APIError)
    return BY_STATUS.get(status, InternalServerError if status >= 500 else APIError)


def api_error(
    body: Any,
    *,
    status: int | None = None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> APIError:
    """The exception for an error body; one that is not of the usual shape becomes the message."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        fallback = error if isinstance(error, str) else str(body)[:500].strip()
        error = {"message": fallback or f"status {status}, without a reason"}
    texts = {
        name: None if error.get(name) is None else str(error[name])
        for name in ("type", "param", "code")
    }
    return _error_class(status, texts["type"], texts["code"])(
        str(error.get("message", "")),
        status=status,
        request_id=request_id,
        retry_after_s=retry_after_s,
        **texts,
    )

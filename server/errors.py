"""One table from exceptions to HTTP statuses, and the one shape of an error body.

Exceptions of the server itself, beside those of `engine.errors`:

InvalidRequestError
├── ModelNotFoundError       a model name that is not served
├── UnauthorizedError        no API key, or a wrong one
├── BodyTooLargeError        more bytes than a request may have
└── LimitError               more prompts, choices or stop strings than a request may have
EngineUnavailableError
├── EngineLoadingError       the engine is not ready yet
├── QueueFullError           too many wait already (carries `retry_after_s`)
└── QueueTimeoutError        the request has waited too long
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

from engine.errors import (
    BitSkipError,
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    EngineDrainingError,
    EngineUnavailableError,
    InvalidRequestError,
    TokenizerError,
)
from engine.types import ChoiceOutput
from server.engine_api import DEAD, DRAINING, LOADING
from server.wire import JSONBody

RETRY_AFTER_S = 5
"""What `Retry-After` tells clients of an engine that is loading or draining."""

INTERNAL_MESSAGE = "The server had an internal error; its log says more."


class ModelNotFoundError(InvalidRequestError):
    """A model name that is not served here."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The model {name[:200]!r} does not exist", param="model", code="model_not_found"
        )


class EngineLoadingError(EngineUnavailableError):
    """The engine is not ready yet."""

    code = "loading"


class UnauthorizedError(InvalidRequestError):
    """No API key, or a wrong one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_api_key")


class BodyTooLargeError(InvalidRequestError):
    """More bytes than a request may have."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"The body is larger than {max_bytes} bytes, which is the most that this server takes",
            code="body_too_large",
        )


class LimitError(InvalidRequestError):
    """More of something than a request may have; the message names the server's limit."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param=param, code="limit_exceeded")


class QueueFullError(EngineUnavailableError):
    """Too many wait already; in `retry_after_s` seconds there should be room."""

    code = "queue_full"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueTimeoutError(EngineUnavailableError):
    """The request has waited too long."""

    code = "queue_timeout"


class ErrorKind(NamedTuple):
    """How a class of exceptions is told to clients."""

    status: int
    type: str
    is_public: bool = True
    """Whether clients may read the exception's message."""


_INVALID, _SERVER, _UNAVAILABLE = "invalid_request_error", "server_error", "unavailable_error"

ERROR_KINDS: Mapping[type[Exception], ErrorKind] = MappingProxyType(
    {
        BitSkipError: ErrorKind(500, _SERVER, is_public=False),
        ConfigError: ErrorKind(500, _SERVER, is_public=False),
        CheckpointError: ErrorKind(500, _SERVER, is_public=False),
        # Once a tokenizer is loaded, all that is left to go wrong is the client's text.
        TokenizerError: ErrorKind(400, _INVALID),
        InvalidRequestError: ErrorKind(400, _INVALID),
        ContextLengthError: ErrorKind(400, _INVALID),
        ModelNotFoundError: ErrorKind(404, _INVALID),
        UnauthorizedError: ErrorKind(401, _INVALID),
        BodyTooLargeError: ErrorKind(413, _INVALID),
        LimitError: ErrorKind(400, _INVALID),
        EngineUnavailableError: ErrorKind(503, _UNAVAILABLE),
        EngineLoadingError: ErrorKind(503, _UNAVAILABLE),
        EngineDeadError: ErrorKind(503, _UNAVAILABLE),
        EngineDrainingError: ErrorKind(503, _UNAVAILABLE),
        QueueFullError: ErrorKind(429, "rate_limit_error"),
        QueueTimeoutError: ErrorKind(408, "timeout_error"),
        Exception: ErrorKind(500, _SERVER, is_public=False),
    }
)

_BY_CODE: Mapping[str, type[EngineUnavailableError]] = MappingProxyType(
    {cls.code: cls for cls in (EngineDeadError, EngineDrainingError)}
)


def kind_of(error: Exception) -> ErrorKind:
    """The table's entry of the error's class, or of its nearest base."""
    return next(ERROR_KINDS[cls] for cls in type(error).__mro__ if cls in ERROR_KINDS)


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The one shape of an error, in responses and in streams."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: Exception) -> dict[str, Any]:
    """The error body of an exception; internal ones do not show their message."""
    kind = kind_of(error)
    message = str(error) if kind.is_public else INTERNAL_MESSAGE
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    if not kind.is_public:
        param, code = None, "internal_error"
    return error_body(message, kind.type, param, code)


def error_response(error: Exception) -> JSONBody:
    """The response to an exception, with `Retry-After` where trying again can help."""
    headers = {}
    if isinstance(error, EngineUnavailableError) and not isinstance(error, EngineDeadError):
        headers["retry-after"] = str(getattr(error, "retry_after_s", RETRY_AFTER_S))
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = 'Bearer realm="bitskip"'
    return JSONBody(describe(error), status_code=kind_of(error).status, headers=headers)


def status_response(
    status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONBody:
    """The response for an HTTP error that no exception of ours stands for (404, 405 …)."""
    message = detail or HTTPStatus(status).phrase
    kind = _INVALID if status < 500 else _SERVER
    return JSONBody(error_body(message, kind), status_code=status, headers=headers)


def output_error(output: ChoiceOutput) -> Exception:
    """The exception that an output with `FinishReason.ERROR` (or an abort) stands for."""
    message = output.error or "The request was ended by the server"
    return _BY_CODE.get(output.error_code or "", BitSkipError)(message)


def unavailable(status: str) -> EngineUnavailableError:
    """Why an engine in this status (not `ready`) answers nothing; in the engine's own words."""
    kind, message = {
        LOADING: (EngineLoadingError, "The model is still being loaded"),
        DRAINING: (EngineDrainingError, "the server is shutting down"),
        DEAD: (EngineDeadError, "the engine has stopped after an internal error"),
    }.get(status, (EngineUnavailableError, f"The engine is {status}"))
    return kind(message)


REJECTION_REASONS = (
    *("invalid_request", "internal_error", "context_length_exceeded", "model_not_found"),
    *("invalid_api_key", "body_too_large", "limit_exceeded"),
    *sorted({cls.code for cls in ERROR_KINDS if issubclass(cls, EngineUnavailableError)}),
)
"""Every value that the label of `bitskip_request_rejected_total` may take."""


def rejection_reason(error: Exception) -> str:
    """The one of `REJECTION_REASONS` that an exception stands for."""
    code = getattr(error, "code", None)
    if code in REJECTION_REASONS:
        return str(code)
    return "invalid_request" if kind_of(error).status < 500 else "internal_error"

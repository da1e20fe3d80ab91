"""The exception tree.

BitSkipError
├── ConfigError            a model or engine configuration that cannot work
├── CheckpointError        files that are missing, damaged, misnamed or misshaped
├── TokenizerError         a tokenizer that cannot be read or cannot do what was asked
├── InvalidRequestError    a request that can never be served as it is (carries `param`)
│   └── ContextLengthError     prompt and max_tokens do not fit the model's context
└── EngineUnavailableError the engine takes no requests now (carries `code`)
    ├── EngineDeadError        it crashed: no request will be served any more
    └── EngineDrainingError    it is shutting down
"""

from __future__ import annotations


class BitSkipError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(BitSkipError):
    """A model or engine configuration that cannot work; the message names the field."""


class CheckpointError(BitSkipError):
    """A checkpoint that cannot be used; the message names the file or every offending tensor."""


class TokenizerError(BitSkipError):
    """A tokenizer that cannot be read, or text that it cannot handle."""


class InvalidRequestError(BitSkipError):
    """A request that can never be served as it stands.

    `param` is the dotted name of the field at fault, `code` a short machine-readable reason.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """The prompt and the tokens asked for do not fit the model's context."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class EngineUnavailableError(BitSkipError):
    """The engine takes no requests now; `code` says why."""

    code = "unavailable"


class EngineDeadError(EngineUnavailableError):
    """The engine crashed; every request is answered with this."""

    code = "engine_dead"


class EngineDrainingError(EngineUnavailableError):
    """The engine is shutting down."""

    code = "shutting_down"

"""The bodies of requests, one model per endpoint."""

from server.protocol.base import (
    NO_EFFECT_FIELDS,
    UNHONOURED_FIELDS,
    RequestModel,
    check_unhonoured,
    parse_request,
    unknown_fields,
    validate,
)
from server.protocol.completions import CompletionRequest, Prompt
from server.protocol.generation import GenerationRequest, SpeculativeOptions, StreamOptions

__all__ = [
    "NO_EFFECT_FIELDS",
    "UNHONOURED_FIELDS",
    "CompletionRequest",
    "GenerationRequest",
    "Prompt",
    "RequestModel",
    "SpeculativeOptions",
    "StreamOptions",
    "check_unhonoured",
    "parse_request",
    "unknown_fields",
    "validate",
]

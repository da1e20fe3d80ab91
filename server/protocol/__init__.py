"""The bodies of requests, one model per endpoint."""

from server.protocol.base import RequestModel, parse_request, unknown_fields, validate
from server.protocol.chat import ChatCompletionRequest, ChatMessage
from server.protocol.completions import CompletionRequest, Prompt
from server.protocol.errors import invalid_field
from server.protocol.generation import GenerationRequest, SpeculativeOptions, StreamOptions
from server.protocol.refused import NO_EFFECT_FIELDS
from server.protocol.tokenizer import DetokenizeRequest, TokenizeRequest

__all__ = [
    "NO_EFFECT_FIELDS",
    "ChatCompletionRequest",
    "ChatMessage",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerationRequest",
    "Prompt",
    "RequestModel",
    "SpeculativeOptions",
    "StreamOptions",
    "TokenizeRequest",
    "invalid_field",
    "parse_request",
    "unknown_fields",
    "validate",
]

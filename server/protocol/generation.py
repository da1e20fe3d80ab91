"""The fields that every endpoint which generates shares: OpenAI's, vLLM's, and ours."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from server.protocol.base import RequestModel, invalid_field, is_integer, validate

MAX_STOP_STRINGS = 4
MAX_CHOICES = 128
"""OpenAI's limit of `n`."""


def _parse_logit_bias(value: object) -> dict[int, float]:
    if not isinstance(value, dict):
        raise invalid_field("logit_bias", "must be an object of token ids and numbers")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not re.fullmatch(r"[0-9]{1,18}", key):
            raise invalid_field("logit_bias", "must have token ids, written as integers, for keys")
        if not isinstance(bias, float) and not (is_integer(bias) and abs(bias) <= 100):
            raise invalid_field(
                "logit_bias", f"of token {int(key)} must be a number from -100 to 100"
            )
        biases[int(key)] = float(bias)
    return biases


def _parse_speculative(value: object) -> bool | SpeculativeOptions:
    if isinstance(value, bool):
        return value
    if value == "auto":
        return True
    if isinstance(value, dict):
        return validate(SpeculativeOptions, value, "speculative")
    raise invalid_field("speculative", 'must be true, false, "auto" or an object')


def _check_exit_method(options: SpeculativeOptions) -> SpeculativeOptions:
    if options.method == "ngram" and options.exit_layer is not None:
        raise invalid_field("speculative.exit_layer", 'contradicts the method "ngram"')
    return options


class StreamOptions(RequestModel):
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SpeculativeOptions(RequestModel):
    """The object form of `speculative`."""

    exit_layer: int | None = None
    num_speculations: Annotated[
        int | None, BeforeValidator(lambda value: None if value == "auto" else value)
    ] = None
    """None: "auto"."""
    method: Literal["early_exit", "ngram", "auto"] = "auto"


class GenerationRequest(RequestModel):
    """The fields that every endpoint which generates shares; defaults are OpenAI's."""

    model: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 and vLLM's -1 keep every token."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Annotated[dict[int, float] | None, PlainValidator(_parse_logit_bias)] = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: Annotated[
        list[str],
        Field(max_length=MAX_STOP_STRINGS),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = []
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_metrics: bool = False
    return_token_sources: bool = False
    exit_layer: int | None = None
    speculative: Annotated[
        bool | SpeculativeOptions | None,
        PlainValidator(_parse_speculative),
        AfterValidator(
            lambda value: (
                _check_exit_method(value) if isinstance(value, SpeculativeOptions) else value
            )
        ),
    ] = None
    """None: as the server is set up; `true` is "auto"."""

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise invalid_field("stream_options", "is only allowed together with stream: true")
        return self

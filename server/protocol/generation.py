"""The fields that every endpoint which generates shares: OpenAI's, vLLM's, and ours."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from server.protocol.base import RequestModel, invalid_field, is_integer, validate

MAX_CHOICES = 128
"""OpenAI's limit of `n`."""
MAX_PROMPT_LOGPROBS = 20
"""Alternatives at each position of a prompt; vLLM's default limit."""
REQUEST_ID_PATTERN = r"^[\x21-\x7e]{1,128}$"


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


def _range(low: int, high: int | None = None) -> dict[str, Any]:
    """Limits for the document; the engine checks them, in its own words."""
    return {"minimum": low} if high is None else {"minimum": low, "maximum": high}


def _check_truncation(value: int) -> int:
    if value != -1 and value < 1:
        raise invalid_field("truncate_prompt_tokens", "must be at least 1, or -1")
    return value


class StreamOptions(RequestModel):
    """What a stream carries besides text."""

    include_usage: bool = Field(
        default=False, description="One more chunk at the end, with `usage` and no choices."
    )
    continuous_usage_stats: bool = Field(
        default=False, description="`usage` so far in every chunk."
    )


class SpeculativeOptions(RequestModel):
    """The object form of `speculative`; it never changes the tokens."""

    exit_layer: int | None = Field(
        default=None,
        description="Draft depth: the layers that draft. At least 1, below the answering depth.",
        examples=[3],
    )
    num_speculations: Annotated[
        int | None,
        BeforeValidator(
            lambda value: None if value == "auto" else value,
            json_schema_input_type=int | Literal["auto"] | None,
        ),
    ] = Field(
        default=None,
        description='Drafts per round, 0 to 16, used exactly; "auto": as many as pay.',
        examples=[4],
    )
    method: Literal["early_exit", "ngram", "auto"] = Field(
        default="auto",
        description="Who drafts: the first layers, repetitions in the text itself, or either.",
    )


class GenerationRequest(RequestModel):
    """The fields that every endpoint which generates shares; defaults are OpenAI's."""

    model: str | None = Field(default=None, description="A served name; absent: the first.")
    exit_layer: int | None = Field(
        default=None,
        description="The depth of the model that answers, 1 to L: `12` is the model of the first "
        "12 layers. Faster, lower quality. Default: all layers.",
        examples=[6],
    )
    speculative: Annotated[
        bool | SpeculativeOptions | None,
        PlainValidator(
            _parse_speculative,
            json_schema_input_type=bool | Literal["auto"] | SpeculativeOptions | None,
        ),
        AfterValidator(
            lambda value: (
                _check_exit_method(value) if isinstance(value, SpeculativeOptions) else value
            )
        ),
    ] = Field(
        default=None,
        description='How tokens are drafted; **never changes the tokens**. `true` is "auto". '
        "Default: as the server is set up.",
        examples=[{"exit_layer": 3, "num_speculations": 4}],
    )
    return_metrics: bool = Field(
        default=False,
        description="Add `metrics`: timing, seed and draft acceptance of each choice.",
        examples=[True],
    )
    return_token_sources: bool = Field(
        default=False,
        description="Add each token's `source`: `draft`, `corrected`, `bonus` or `plain`.",
        examples=[True],
    )
    temperature: float = Field(
        default=1.0, description="0 is greedy.", json_schema_extra=_range(0, 100)
    )
    top_p: float = Field(default=1.0, json_schema_extra={"exclusiveMinimum": 0, "maximum": 1})
    top_k: int = Field(
        default=0, description="0 and -1 keep every token.", json_schema_extra=_range(-1)
    )
    min_p: float = Field(default=0.0, json_schema_extra=_range(0, 1))
    presence_penalty: float = Field(default=0.0, json_schema_extra=_range(-2, 2))
    frequency_penalty: float = Field(default=0.0, json_schema_extra=_range(-2, 2))
    repetition_penalty: float = Field(
        default=1.0, json_schema_extra={"exclusiveMinimum": 0, "maximum": 100}
    )
    logit_bias: Annotated[
        dict[int, float] | None,
        PlainValidator(_parse_logit_bias, json_schema_input_type=dict[str, float] | None),
    ] = Field(default=None, description="Token id → a number from -100 to 100.")
    allowed_token_ids: list[int] | None = Field(
        default=None, description="The only tokens that may be generated."
    )
    min_tokens: int = Field(
        default=0,
        description="No end before so many tokens; at most `max_tokens`.",
        json_schema_extra=_range(0),
    )
    ignore_eos: bool = False
    stop: Annotated[
        list[str],
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value,
            json_schema_input_type=str | list[str],
        ),
    ] = Field(
        default_factory=list,
        description="A text or several that end the answer: up to 4, unless the server takes more.",
    )
    stop_token_ids: list[int] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    seed: int | None = Field(
        default=None, description="64 bits. Absent: drawn, and told by `return_metrics`."
    )
    n: int = Field(default=1, ge=1, le=MAX_CHOICES, description="Choices for each prompt.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    echo: bool = Field(default=False, description="Put the prompt's text before the answer.")
    prompt_logprobs: Annotated[int | None, Field(ge=0, le=MAX_PROMPT_LOGPROBS)] = Field(
        default=None,
        description="Score the prompt's tokens, with so many alternatives each. Not in streams.",
    )
    truncate_prompt_tokens: Annotated[int | None, AfterValidator(_check_truncation)] = Field(
        default=None,
        description="Keep only the prompt's last tokens; -1: as many as fit beside the answer.",
    )
    add_special_tokens: bool = Field(
        default=True, description="Let the tokenizer add its own around the text (BOS …)."
    )
    return_token_ids: bool = Field(
        default=False, description="Add `prompt_token_ids` and each choice's `token_ids`."
    )
    return_tokens_as_token_ids: bool = Field(
        default=False, description="Name tokens among logprobs `token_id:N` instead of by text."
    )
    priority: int = Field(
        default=0, description="Lower is served first when the server is busy; changes no token."
    )
    request_id: str | None = Field(
        default=None,
        pattern=REQUEST_ID_PATTERN,
        description="Becomes part of the answer's `id` and of the server's log.",
    )

    @model_validator(mode="after")
    def _check_streaming(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise invalid_field("stream_options", "is only allowed together with stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise invalid_field("prompt_logprobs", "is not available in a stream")
        return self

    @property
    @abstractmethod
    def max_new_tokens(self) -> int | None:
        """The most tokens that each choice may get; None: up to the context's end."""

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Alternatives to report with each generated token; None: no logprobs."""

    @property
    def num_scored(self) -> int | None:
        """Alternatives to work out at each position of the prompt; None: no scores."""
        return self.prompt_logprobs

    @property
    def engine_names(self) -> Mapping[str, str]:
        """Names of the engine's for which this body has its own."""
        return {}

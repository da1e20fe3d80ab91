"""The bodies of requests: OpenAI's fields, vLLM's, and ours.

Types are strict (`true` and `2.0` are not integers), `null` means not given, and unknown fields
are kept aside so that `unknown_fields` can name them. Whatever is wrong is raised as
`InvalidRequestError` with the dotted name of the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from engine.errors import InvalidRequestError

MAX_LOGPROBS = 5
MAX_STOP_STRINGS = 4
MAX_CHOICES = 128
"""OpenAI's limit of `n`."""

NO_EFFECT_FIELDS = frozenset(
    {
        "include_obfuscation",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Billing and storage fields, accepted without effect."""

UNHONOURED_FIELDS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "suffix": (),
        "truncate_prompt_tokens": (),
        "allowed_token_ids": (),
        "prompt_logprobs": (),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "add_special_tokens": (True,),
        "priority": (0,),
        "request_id": (),
        "use_beam_search": (False,),
        "length_penalty": (1, 1.0),
        "early_stopping": (False,),
        "bad_words": (),
        "spaces_between_special_tokens": (True,),
        "detokenize": (True,),
        "logits_processors": (),
        "logprob_token_ids": (),
        "response_format": ({"type": "text"},),
        "structured_outputs": (),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "guided_decoding_backend": (),
        "guided_whitespace_pattern": (),
        "prompt_embeds": (),
        "cache_salt": (),
        "kv_transfer_params": (),
        "vllm_xargs": (),
        "messages": (),
        "max_completion_tokens": (),
        "top_logprobs": (),
        "tools": (),
        "tool_choice": ("none",),
        "functions": (),
        "function_call": ("none",),
    }
)
"""Fields that we know and do not honour → the values, besides null and the empty ones, that ask
for nothing."""

Prompt = str | list[int]

M = TypeVar("M", bound="RequestModel")


def _invalid(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} {message}", param=param)


def is_integer(value: object) -> bool:
    """Whether a JSON value is an integer; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def parse_prompts(value: object) -> list[Prompt]:
    """The prompts in any of OpenAI's four forms; raises `InvalidRequestError`."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise _invalid("prompt", "must be a string, a list of strings, or (a list of) token ids")
    if all(is_integer(item) for item in value):
        return [value]
    if all(isinstance(item, str) for item in value):
        return value
    if all(
        isinstance(item, list) and item and all(is_integer(token) for token in item)
        for item in value
    ):
        return value
    raise _invalid(
        "prompt", "must hold strings only, integers only, or non-empty lists of integers only"
    )


def _parse_logit_bias(value: object) -> dict[int, float]:
    if not isinstance(value, dict):
        raise _invalid("logit_bias", "must be an object of token ids and numbers")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not re.fullmatch(r"[0-9]{1,18}", key):
            raise _invalid("logit_bias", "must have token ids, written as integers, for keys")
        if not isinstance(bias, float) and not (is_integer(bias) and abs(bias) <= 100):
            raise _invalid("logit_bias", f"of token {int(key)} must be a number from -100 to 100")
        biases[int(key)] = float(bias)
    return biases


def _parse_speculative(value: object) -> bool | SpeculativeOptions:
    if isinstance(value, bool):
        return value
    if value == "auto":
        return True
    if isinstance(value, dict):
        return validate(SpeculativeOptions, value, "speculative")
    raise _invalid("speculative", 'must be true, false, "auto" or an object')


def _check_exit_method(options: SpeculativeOptions) -> SpeculativeOptions:
    if options.method == "ngram" and options.exit_layer is not None:
        raise _invalid("speculative.exit_layer", 'contradicts the method "ngram"')
    return options


class RequestModel(BaseModel):
    """Base of every body, and of the objects inside one."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_means_not_given(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


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
            raise _invalid("stream_options", "is only allowed together with stream: true")
        return self


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[Prompt], PlainValidator(parse_prompts)]
    max_tokens: int = 16
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    echo: bool = False
    best_of: int | None = None

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise _invalid("best_of", "is only supported where it equals n")
        return self


def asks_for_nothing(value: object, neutral: tuple[Any, ...]) -> bool:
    """Whether a field's value is null, empty or neutral, so that ignoring it honours it."""
    if value is None or (isinstance(value, (str, list, dict)) and not value):
        return True
    return any(type(value) is type(one) and value == one for one in neutral)


def check_unhonoured(raw: Mapping[str, Any]) -> None:
    """Raise `InvalidRequestError` for a field that we know, do not honour, and that asks."""
    for name, neutral in UNHONOURED_FIELDS.items():
        if name in raw and not asks_for_nothing(raw[name], neutral):
            raise _invalid(name, "is not supported")


def validate(model: type[M], raw: Mapping[str, Any], prefix: str = "") -> M:
    """`raw` as a `model`; raises `InvalidRequestError` naming the first field at fault.

    The message never repeats the value. `prefix` is the dotted name of the object itself.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as failure:
        first = failure.errors(include_url=False, include_context=False, include_input=False)[0]
        parts = [prefix] if prefix else []
        parts += [str(part) for part in first["loc"]]
        names = [prefix] if prefix else []
        names += [part for part in first["loc"] if isinstance(part, str)]
        if first["type"] == "missing":
            message = f"{'.'.join(parts)} is required"
        else:
            message = f"{'.'.join(parts) or 'The body'}: {first['msg']}"
        raise InvalidRequestError(message, param=".".join(names) or None) from None


def parse_request(model: type[M], raw: Mapping[str, Any]) -> M:
    """A whole body as a `model`: fields that cannot be honoured refused, the rest validated."""
    check_unhonoured(raw)
    return validate(model, raw)


def unknown_fields(model: RequestModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that neither `model` nor we know, its objects' included."""
    for name in model.model_extra or {}:
        if name not in NO_EFFECT_FIELDS and name not in UNHONOURED_FIELDS:
            yield prefix + name
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, RequestModel):
            yield from unknown_fields(value, f"{prefix}{name}.")

"""What the tests know of every field of the two bodies: good, wrong and impossible values.

Both tables are held to the models by `tests/service/test_fields.py`: a field that is missing here
fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from server.protocol import ChatCompletionRequest, CompletionRequest, RequestModel
from support.served_process import NUM_LAYERS, VOCAB_SIZE

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Values:
    """Values of one field; `given` are the other fields that make them possible."""

    good: tuple[Any, ...]
    wrong_type: tuple[Any, ...]
    impossible: tuple[Any, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)


NOT_A_BOOL = (1, "true", [], {})
NOT_AN_INT = (True, 2.0, "2", [2], {})
NOT_A_NUMBER = (True, "1", [1.0], {})
HUGE = 10**30

BOOL = Values((True, False), NOT_A_BOOL)


def number(low: float, high: float, *impossible: float) -> Values:
    """Any number from `low` to `high`, both allowed."""
    return Values((low, high), NOT_A_NUMBER, (low - 0.5, high + 0.5, 1e300, *impossible))


SHARED: Mapping[str, Values] = MappingProxyType(
    {
        "model": Values(("tiny",), (5, True, ["tiny"])),
        "exit_layer": Values((1, NUM_LAYERS), NOT_AN_INT, (0, -1, NUM_LAYERS + 1, HUGE)),
        "speculative": Values((True, False, "auto", {}), (1, "yes", [], 0.5)),
        "speculative.exit_layer": Values((1, NUM_LAYERS - 1), NOT_AN_INT, (0, NUM_LAYERS, HUGE)),
        "speculative.num_speculations": Values((0, 16, "auto"), (True, 2.0, "2"), (-1, 17, HUGE)),
        "speculative.method": Values(("early_exit", "ngram", "auto"), (1, True, []), ("magic",)),
        "return_metrics": BOOL,
        "return_token_sources": BOOL,
        "temperature": number(0, 100),
        "top_p": Values((0.01, 1), NOT_A_NUMBER, (0, -0.1, 1.1)),
        "top_k": Values((-1, 0, 5, 10**9), NOT_AN_INT, (-2,)),
        "min_p": number(0, 1),
        "presence_penalty": number(-2, 2),
        "frequency_penalty": number(-2, 2),
        "repetition_penalty": Values((0.1, 100), NOT_A_NUMBER, (0, -1, 101)),
        "logit_bias": Values(
            ({}, {"5": -100, "6": 2.5}),
            (5, "x", [5], {"5": "x"}, {"5": True}, {"5": None}),
            ({str(VOCAB_SIZE): 1}, {"-1": 1}, {"x": 1}, {"1.5": 1}, {"5": 101}, {"5": -100.5}),
        ),
        "allowed_token_ids": Values(
            ([5], [5, 5, VOCAB_SIZE - 1]),
            (5, "5", [True], ["5"], [1.0], {}),
            ([], [VOCAB_SIZE], [-1], [HUGE]),
        ),
        "min_tokens": Values((0, 2), NOT_AN_INT, (-1, 3, HUGE)),
        "ignore_eos": BOOL,
        "stop": Values(("x", ["x", "y"], []), (5, [5], {"a": 1}, True), ("", ["x", ""], ["a"] * 5)),
        "stop_token_ids": Values(([], [5]), (5, "5", [True], [1.0]), ([VOCAB_SIZE], [-1], [HUGE])),
        "include_stop_str_in_output": BOOL,
        "skip_special_tokens": BOOL,
        "seed": Values((0, -(2**63), 2**64 - 1), NOT_AN_INT, (2**64, -(2**63) - 1)),
        "n": Values((1, 3), NOT_AN_INT, (0, -1, 129, HUGE)),
        "stream": BOOL,
        "stream_options": Values(
            ({}, {"include_usage": True}), (True, "x", []), given={"stream": 1}
        ),
        "stream_options.include_usage": Values((True, False), NOT_A_BOOL, given={"stream": 1}),
        "stream_options.continuous_usage_stats": Values(
            (True, False), NOT_A_BOOL, given={"stream": 1}
        ),
        "echo": BOOL,
        "prompt_logprobs": Values((0, 20), NOT_AN_INT, (-1, 21, HUGE)),
        "truncate_prompt_tokens": Values((-1, 1, 2048), NOT_AN_INT, (0, -2, 2049, HUGE)),
        "add_special_tokens": BOOL,
        "return_token_ids": BOOL,
        "return_tokens_as_token_ids": BOOL,
        "priority": Values((0, -5, 2**63 - 1), NOT_AN_INT, (2**63, HUGE)),
        "request_id": Values(("mine", "a" * 128), (5, True, []), ("", "two words", "ü", "a" * 129)),
    }
)

COMPLETION_VALUES: Mapping[str, Values] = MappingProxyType(
    {
        **SHARED,
        "prompt": Values(
            ("x", ["x", "y"], [5, 6], [[5], [6, 7]]),
            (5, True, {"text": "x"}, ["x", 5], [1, 2.0], [True], [[1], "x"]),
            ([], [[]], [VOCAB_SIZE], [-1], [HUGE], "a lone \ud800 surrogate"),
        ),
        "max_tokens": Values((0, 1), NOT_AN_INT, (-1, 2048, HUGE)),
        "logprobs": Values((0, 5), NOT_AN_INT, (-1, 6)),
        "best_of": Values((1,), NOT_AN_INT, (2, 0, -1)),
    }
)

USER = {"role": "user", "content": "Once upon"}
CHAT_VALUES: Mapping[str, Values] = MappingProxyType(
    {
        **SHARED,
        "messages": Values(
            ([USER], [{"role": "system", "content": "Be brief."}, USER]),
            (5, "hi", {}, ["hi"], [5], [[USER]]),
            ([], [{"role": "user", "content": "a lone \ud800 surrogate"}]),
        ),
        "messages.role": Values(
            ("system", "developer", "user", "assistant"), (5, True), ("tool", "function", "robot")
        ),
        "messages.content": Values(
            ("hi", [{"type": "text", "text": "hi"}, {"type": "text", "text": "you"}]),
            (5, True, {"type": "text"}, ["hi"], [{"type": "text"}], [{"type": "text", "text": 5}]),
            (
                [],
                [{"type": "image_url", "image_url": {"url": "data:x"}}],
                [{"type": "input_audio", "input_audio": {}}],
            ),
        ),
        "messages.name": Values(("Ann",), (5, True, [])),
        "max_completion_tokens": Values((0, 1), NOT_AN_INT, (-1, 2048, HUGE)),
        "max_tokens": Values((0, 1), NOT_AN_INT, (-1, 2048, HUGE)),
        "logprobs": BOOL,
        "top_logprobs": Values((0, 20), NOT_AN_INT, (-1, 21), given={"logprobs": 1}),
        "add_generation_prompt": BOOL,
        "continue_final_message": BOOL,
        "chat_template_kwargs": Values(
            ({}, {"mood": "good"}), (5, "x", []), ({"messages": []}, {"tools": []})
        ),
    }
)


def field_names(model: type[RequestModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of every field of a body, those of the objects inside it included."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(info.annotation):
            yield from field_names(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[RequestModel]]:
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models_in(part)


@dataclass(frozen=True, slots=True)
class Route:
    """One of the endpoints that generate, and what the least request to it is."""

    name: str
    path: str
    model: type[RequestModel]
    values: Mapping[str, Values]
    least: Mapping[str, Any]

    def body(self, field: str, value: Any) -> Body:
        """The least request with one field set, and what that field needs beside it."""
        body: Body = {**self.least, "max_tokens": 2, "temperature": 0}
        if field == "max_completion_tokens":
            del body["max_tokens"]
        body |= {name: bool(one) for name, one in self.values[field].given.items()}
        outer, _, inner = field.partition(".")
        if not inner:
            return body | {outer: value}
        if outer == "messages":
            return body | {outer: [{**USER, inner: value}]}
        return body | {outer: {inner: value}}


ROUTES = (
    Route(
        "completions", "/v1/completions", CompletionRequest, COMPLETION_VALUES, {"prompt": "Once"}
    ),
    Route("chat", "/v1/chat/completions", ChatCompletionRequest, CHAT_VALUES, {"messages": [USER]}),
)

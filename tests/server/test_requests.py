"""What requests may hold, and that all of it reaches the engine."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from typing import Any

import httpx
import pytest

from engine.errors import InvalidRequestError
from engine.types import DraftMethod, SamplingParams, SpeculativeParams
from server.generation import sampling_params
from server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    StreamOptions,
    parse_request,
    unknown_fields,
)
from server.protocol.refused import check_refused
from support.live_server import LiveServer

SHARED_FIELDS: dict[str, Any] = {
    "model": "tiny",
    "min_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "presence_penalty": 0.25,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.25,
    "logit_bias": {"97": -50, "98": 2.5},
    "allowed_token_ids": [97, 98],
    "stop": ["one", "two"],
    "stop_token_ids": [5, 6],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "seed": 42,
    "n": 2,
    "echo": True,
    "prompt_logprobs": 4,
    "truncate_prompt_tokens": 5,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "priority": -3,
    "request_id": "mine",
    "exit_layer": 6,
    "speculative": {"exit_layer": 2, "num_speculations": 4, "method": "early_exit"},
    "return_metrics": True,
    "return_token_sources": True,
}
STREAM_FIELDS: dict[str, Any] = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
COMPLETION_FIELDS: dict[str, Any] = {
    **SHARED_FIELDS,
    "prompt": "hi",
    "max_tokens": 20,
    "logprobs": 3,
    "add_special_tokens": False,
    "best_of": 2,
}
CHAT_FIELDS: dict[str, Any] = {
    **SHARED_FIELDS,
    "messages": [{"role": "user", "content": "hi", "name": "me"}],
    "max_completion_tokens": 20,
    "max_tokens": 20,
    "logprobs": True,
    "top_logprobs": 3,
    "add_special_tokens": True,
    "add_generation_prompt": False,
    "continue_final_message": True,
    "chat_template_kwargs": {"mood": "good"},
}
MODELS: dict[type[GenerationRequest], dict[str, Any]] = {
    CompletionRequest: COMPLETION_FIELDS,
    ChatCompletionRequest: CHAT_FIELDS,
}


def parse(**body: Any) -> CompletionRequest:
    return parse_request(CompletionRequest, {"prompt": "hi", **body})


def parse_chat(**body: Any) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "hi"}]
    return parse_request(ChatCompletionRequest, {"messages": messages, **body})


@pytest.mark.parametrize("model", MODELS)
def test_every_field_reaches_the_sampling_parameters(model: type[GenerationRequest]) -> None:
    params = sampling_params(parse_request(model, MODELS[model]))
    assert params == SamplingParams(
        max_tokens=20,
        min_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        repetition_penalty=1.25,
        logit_bias={97: -50.0, 98: 2.5},
        allowed_token_ids=(97, 98),
        stop=("one", "two"),
        stop_token_ids=(5, 6),
        include_stop_str_in_output=True,
        ignore_eos=True,
        skip_special_tokens=False,
        seed=42,
        n=2,
        logprobs=3,
        prompt_logprobs=4,
        exit_layer=6,
        speculative=SpeculativeParams(
            method=DraftMethod.EARLY_EXIT, exit_layer=2, num_speculations=4
        ),
        priority=-3,
    )
    # A parameter that the engine gains and no field sets would keep its default here.
    default = SamplingParams()
    for field in dataclasses.fields(SamplingParams):
        assert getattr(params, field.name) != getattr(default, field.name), field.name


@pytest.mark.parametrize("model", MODELS)
def test_the_tables_above_set_every_field_of_the_body(model: type[GenerationRequest]) -> None:
    fields = MODELS[model]
    request = parse_request(model, fields)
    assert set(model.model_fields) == {*fields, *STREAM_FIELDS}
    for name in fields:
        default = model.model_fields[name].get_default(call_default_factory=True)
        assert getattr(request, name) != default, name


def test_what_is_sent_is_what_the_engine_gets(server: LiveServer, client: httpx.Client) -> None:
    body = {**COMPLETION_FIELDS, "stop": "\0", "max_tokens": 3}
    assert client.post("/v1/completions", json=body).status_code == 200
    expected = sampling_params(parse_request(CompletionRequest, body))
    assert server.engine.submitted[-1][2] == expected


def test_defaults_are_openais() -> None:
    assert sampling_params(parse()) == SamplingParams()
    assert SamplingParams().max_tokens == 16 and SamplingParams().temperature == 1.0
    assert sampling_params(parse_chat()) == SamplingParams(max_tokens=None)


def test_null_means_not_given() -> None:
    nulls = {name: None for name in (*COMPLETION_FIELDS, *CompletionRequest.refused)}
    assert parse(**{**nulls, "prompt": "hi"}) == parse()
    nulls = {name: None for name in (*CHAT_FIELDS, *ChatCompletionRequest.refused)}
    messages = [{"role": "user", "content": "hi", "name": None, "tool_calls": None}]
    assert parse_chat(**{**nulls, "messages": messages}) == parse_chat()
    inner = parse(
        stream=True,
        stream_options={"include_usage": None},
        speculative={"exit_layer": None, "num_speculations": None, "method": None},
    )
    assert inner.stream_options == StreamOptions()
    assert sampling_params(inner).speculative == SpeculativeParams()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, SpeculativeParams()),
        ("auto", SpeculativeParams()),
        (False, SpeculativeParams(enabled=False)),
        ({}, SpeculativeParams()),
        (
            {"num_speculations": "auto", "method": "ngram"},
            SpeculativeParams(method=DraftMethod.NGRAM),
        ),
        ({"num_speculations": 0}, SpeculativeParams(num_speculations=0)),
    ],
)
def test_speculative_in_all_its_forms(value: object, expected: SpeculativeParams) -> None:
    assert sampling_params(parse(speculative=value)).speculative == expected


def test_top_k_minus_one_is_off() -> None:
    assert sampling_params(parse(top_k=-1)).top_k == 0


def test_seeds_are_64_bits_wide() -> None:
    assert sampling_params(parse(seed=2**64 - 1)).seed == 2**64 - 1


BAD_FIELDS: list[tuple[str, object, str]] = [
    *(
        (name, True, name)
        for name in ("max_tokens", "n", "seed", "top_k", "logprobs", "min_tokens")
    ),
    *((name, 2.0, name) for name in ("max_tokens", "n", "seed", "exit_layer", "min_tokens")),
    *((name, "2", name) for name in ("max_tokens", "temperature", "stream", "echo")),
    *((name, 1, name) for name in ("stream", "echo", "ignore_eos", "return_metrics", "model")),
    *((name, True, name) for name in ("temperature", "top_p", "min_p", "presence_penalty")),
    ("max_tokens", -1, "max_tokens"),
    ("temperature", -0.1, "temperature"),
    ("temperature", 10**400, "temperature"),
    ("top_p", 0, "top_p"),
    ("top_p", 1.1, "top_p"),
    ("top_k", -2, "top_k"),
    ("presence_penalty", 2.5, "presence_penalty"),
    ("n", 0, "n"),
    ("n", 100_000, "n"),
    ("logprobs", 6, "logprobs"),
    ("logprobs", -1, "logprobs"),
    ("seed", 2**64, "seed"),
    ("stop", ["a", "b", "c", "d", "e"], "stop"),
    ("stop", [""], "stop"),
    ("stop", ["a", 1], "stop"),
    ("stop_token_ids", [1, True], "stop_token_ids"),
    ("stop_token_ids", [257], "stop_token_ids"),
    ("logit_bias", {"a": 1}, "logit_bias"),
    ("logit_bias", {"1.5": 1}, "logit_bias"),
    ("logit_bias", {"-1": 1}, "logit_bias"),
    ("logit_bias", {"1": True}, "logit_bias"),
    ("logit_bias", {"1": 101}, "logit_bias"),
    ("logit_bias", {"1": 10**400}, "logit_bias"),
    ("logit_bias", {"257": 1}, "logit_bias"),
    ("logit_bias", [1], "logit_bias"),
    ("min_tokens", 17, "min_tokens"),
    ("exit_layer", 0, "exit_layer"),
    ("exit_layer", 9, "exit_layer"),
    ("speculative", 1, "speculative"),
    ("speculative", "yes", "speculative"),
    ("speculative", [], "speculative"),
    ("speculative", {"exit_layer": 8}, "speculative.exit_layer"),
    ("speculative", {"exit_layer": True}, "speculative.exit_layer"),
    ("speculative", {"exit_layer": 2, "method": "ngram"}, "speculative.exit_layer"),
    ("speculative", {"num_speculations": 17}, "speculative.num_speculations"),
    ("speculative", {"num_speculations": "many"}, "speculative.num_speculations"),
    ("speculative", {"method": "magic"}, "speculative.method"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("stream_options", [], "stream_options"),
    ("best_of", 2, "best_of"),
    ("best_of", -3, "best_of"),
    ("prompt", None, "prompt"),
    ("prompt", "", "prompt"),
    ("prompt", [], "prompt"),
    ("prompt", [[]], "prompt"),
    ("prompt", ["a", 1], "prompt"),
    ("prompt", [1, True], "prompt"),
    ("prompt", [1, 257], "prompt"),
    ("prompt", [-1], "prompt"),
    ("prompt", {"text": "a"}, "prompt"),
    ("prompt", 5, "prompt"),
]


@pytest.mark.parametrize(("name", "value", "param"), BAD_FIELDS)
def test_bad_values_are_a_400_that_names_the_field(
    client: httpx.Client, name: str, value: object, param: str
) -> None:
    response = client.post("/v1/completions", json={"prompt": "hi", name: value})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert name in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", {"messages": []}, "messages must not be empty"),
        ("chat/completions", {"messages": [1]}, "messages.0 must be an object"),
        ("chat/completions", {"messages": "x"}, "messages must be a list"),
        ("chat/completions", {"chat_template_kwargs": 3}, "chat_template_kwargs must be an object"),
        ("completions", {"stop": 3}, "stop must be a list"),
        ("completions", {"request_id": "\udc00"}, "request_id holds a lone surrogate"),
        ("completions", {"stream_options": []}, "stream_options must be an object"),
    ],
)
def test_errors_speak_of_json_not_of_python(
    client: httpx.Client, path: str, body: dict[str, Any], message: str
) -> None:
    required = CHAT_FIELDS if "chat" in path else {"prompt": "hi"}
    response = client.post(f"/v1/{path}", content=json.dumps({**required, **body}))
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model in MODELS for name in sorted(model.refused)]
)
def test_known_fields_that_are_not_honoured_are_refused_by_name(
    model: type[GenerationRequest], name: str
) -> None:
    required = {"prompt": "hi"} if model is CompletionRequest else CHAT_FIELDS
    with pytest.raises(InvalidRequestError, match=name) as caught:
        parse_request(model, {**required, name: ["something"]})
    assert caught.value.param == name
    for nothing in (None, "", [], {}, *model.refused[name]):
        check_refused(model.refused, {name: nothing})


@pytest.mark.parametrize("model", MODELS)
def test_no_field_is_honoured_and_refused(model: type[GenerationRequest]) -> None:
    assert not model.refused.keys() & model.model_fields.keys()


def test_zero_and_false_are_not_mistaken_for_each_other() -> None:
    for name, value in (("use_beam_search", 0), ("length_penalty", True), ("top_logprobs", False)):
        with pytest.raises(InvalidRequestError):
            parse(**{name: value})


def test_unknown_fields_are_named_once_and_ignored(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    body = {
        "prompt": "hi",
        "frobnicate": 1,
        "stream": True,
        "stream_options": {"wobble": 1, "include_obfuscation": True},
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "k",
        "parallel_tool_calls": False,
    }
    names = sorted(unknown_fields(parse_request(CompletionRequest, body)))
    assert names == ["frobnicate", "stream_options.wobble"]
    with caplog.at_level(logging.WARNING, "server"):
        assert client.post("/v1/completions", json=body).status_code == 200
    warnings = [
        record.getMessage()
        for record in caplog.records
        if record.name == "server.routes.completions"
    ]
    assert len(warnings) == 1 and "frobnicate" in warnings[0] and "user" not in warnings[0]


def test_long_prompts_are_tokenised_off_the_loop(
    server: LiveServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    encode = server.engine.tokenizer.encode

    def recording(text: str, add_special_tokens: bool = True) -> list[int]:
        threads.append(threading.current_thread().name)
        return encode(text)[:5]

    monkeypatch.setattr(server.engine.tokenizer, "encode", recording)
    for prompt in ("short", "long" * 10_000):
        assert client.post("/v1/completions", json={"prompt": prompt}).status_code == 200
    loop_thread = server.call(lambda: threading.current_thread().name)
    assert threads[0] == loop_thread
    assert threads[1] != loop_thread


def test_body_is_json_whatever_its_type_says(client: httpx.Client) -> None:
    body = json.dumps({"prompt": "hi"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json", ""):
        response = client.post("/v1/completions", content=body, headers={"content-type": kind})
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("text/plain", 400),
        ("", 400),
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
    ],
)
def test_other_types_from_web_pages_are_refused(
    client: httpx.Client, kind: str, status: int
) -> None:
    response = client.post(
        "/v1/completions",
        content=json.dumps({"prompt": "hi"}),
        headers={"content-type": kind, "origin": "https://example.org"},
    )
    assert response.status_code == status

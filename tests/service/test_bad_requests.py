"""Every bad request is answered with an error that names the field, and harms nobody else."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from support.served_process import CONTEXT, NUM_LAYERS, VOCAB_SIZE, ServedProcess

GOOD = {"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}

LONG = [65] * (CONTEXT - 3)

BAD_FIELDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": [""]}),
    ("prompt", {"prompt": [[]]}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": 5}),
    ("prompt", {"prompt": True}),
    ("prompt", {"prompt": {"text": "x"}}),
    ("prompt", {"prompt": ["x", 5]}),
    ("prompt", {"prompt": [1, 2.0]}),
    ("prompt", {"prompt": [True]}),
    ("prompt", {"prompt": [[1], "x"]}),
    ("prompt", {"prompt": [VOCAB_SIZE]}),
    ("prompt", {"prompt": [-1]}),
    ("prompt", {"prompt": [10**30]}),
    ("prompt", {"prompt": "a lone \ud800 surrogate"}),
    ("prompt", {"prompt": [65] * (CONTEXT + 1)}),
    ("prompt", {"prompt": "x" * 100_000}),
    ("max_tokens", {"prompt": LONG}),
    ("max_tokens", {"max_tokens": -1}),
    ("max_tokens", {"max_tokens": CONTEXT}),
    ("max_tokens", {"max_tokens": 10**30}),
    ("max_tokens", {"max_tokens": True}),
    ("max_tokens", {"max_tokens": "4"}),
    ("max_tokens", {"max_tokens": 2.0}),
    ("min_tokens", {"min_tokens": 5}),
    ("exit_layer", {"exit_layer": 0}),
    ("exit_layer", {"exit_layer": -1}),
    ("exit_layer", {"exit_layer": 99}),
    ("exit_layer", {"exit_layer": NUM_LAYERS + 1}),
    ("exit_layer", {"exit_layer": True}),
    ("exit_layer", {"exit_layer": "six"}),
    ("exit_layer", {"exit_layer": 2.0}),
    ("speculative", {"speculative": 1}),
    ("speculative", {"speculative": "yes"}),
    ("speculative", {"speculative": []}),
    ("speculative.exit_layer", {"speculative": {"exit_layer": NUM_LAYERS}}),
    ("speculative.exit_layer", {"speculative": {"exit_layer": 0}}),
    ("speculative.exit_layer", {"speculative": {"exit_layer": "3"}}),
    ("speculative.exit_layer", {"exit_layer": 3, "speculative": {"exit_layer": 3}}),
    ("speculative.exit_layer", {"speculative": {"exit_layer": 2, "method": "ngram"}}),
    ("speculative.num_speculations", {"speculative": {"num_speculations": 17}}),
    ("speculative.num_speculations", {"speculative": {"num_speculations": -1}}),
    ("speculative.num_speculations", {"speculative": {"num_speculations": 1.5}}),
    ("speculative.method", {"speculative": {"method": "magic"}}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": 1e9}),
    ("temperature", {"temperature": "hot"}),
    ("top_p", {"top_p": 0}),
    ("top_p", {"top_p": 1.1}),
    ("top_k", {"top_k": -2}),
    ("min_p", {"min_p": 2}),
    ("presence_penalty", {"presence_penalty": 3}),
    ("frequency_penalty", {"frequency_penalty": -3}),
    ("repetition_penalty", {"repetition_penalty": 0}),
    ("stop", {"stop": ""}),
    ("stop", {"stop": ["x", ""]}),
    ("stop", {"stop": ["a", "b", "c", "d", "e"]}),
    ("stop", {"stop": [5]}),
    ("stop", {"stop": {"a": 1}}),
    ("stop_token_ids", {"stop_token_ids": [VOCAB_SIZE]}),
    ("logit_bias", {"logit_bias": {str(VOCAB_SIZE): 1}}),
    ("logit_bias", {"logit_bias": {"x": 1}}),
    ("logit_bias", {"logit_bias": {"-1": 1}}),
    ("logit_bias", {"logit_bias": {"5": 101}}),
    ("logit_bias", {"logit_bias": {"5": None}}),
    ("logit_bias", {"logit_bias": [5]}),
    ("logprobs", {"logprobs": 6}),
    ("logprobs", {"logprobs": -1}),
    ("logprobs", {"logprobs": True}),
    ("n", {"n": 0}),
    ("n", {"n": 10**9}),
    ("seed", {"seed": 1 << 64}),
    ("seed", {"seed": "7"}),
    ("stream", {"stream": "yes"}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": 1}}),
    ("suffix", {"suffix": "the end"}),
    ("best_of", {"best_of": 3}),
    ("messages", {"messages": [{"role": "user", "content": "hi"}]}),
    ("tools", {"tools": [{"type": "function"}]}),
    ("response_format", {"response_format": {"type": "json_object"}}),
)

BAD_BODIES = {
    "broken": b'{"prompt": "x"',
    "empty": b"",
    "a list": b"[1]",
    "a string": b'"x"',
    "null": b"null",
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "infinity": b'{"prompt": "x", "top_p": -Infinity}',
    "a float too large": b'{"prompt": "x", "temperature": 1e999}',
    "nested too deeply": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "an endless number": b'{"prompt": "x", "seed": ' + b"9" * 10_000 + b"}",
    "a name that is no Unicode": b'{"prompt": "x", "\\ud800": 1}',
    "a form": b"prompt=x&max_tokens=4",
}


@pytest.fixture(scope="module")
def good_text(served: ServedProcess) -> str:
    return served.complete(**GOOD)["choices"][0]["text"]


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 400
    return error


@pytest.mark.parametrize(("param", "change"), BAD_FIELDS, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_field_is_named(
    served: ServedProcess, good_text: str, param: str, change: dict[str, Any]
) -> None:
    body = json.dumps(GOOD | change).encode()
    error = error_of(served.http.post("/v1/completions", content=body))
    assert error["param"] == param
    # OpenAI's words for a request that is too long speak of prompt and completion.
    assert error["code"] == "context_length_exceeded" or param in error["message"]
    assert served.complete(**GOOD)["choices"][0]["text"] == good_text


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_body_that_is_no_request(served: ServedProcess, good_text: str, body: bytes) -> None:
    error = error_of(served.http.post("/v1/completions", content=body))
    assert "body" in error["message"] or error["param"] is not None
    assert served.complete(**GOOD)["choices"][0]["text"] == good_text


def test_a_model_that_is_not_served(served: ServedProcess) -> None:
    response = served.http.post("/v1/completions", json=GOOD | {"model": "gpt-4"})
    error = error_of(response, 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "gpt-4" in error["message"]
    assert served.http.get("/v1/models/gpt-4").status_code == 404


@pytest.mark.parametrize("field", ["stop", "user", "unknown"])
def test_a_lone_surrogate_elsewhere_does_no_harm(
    served: ServedProcess, good_text: str, field: str
) -> None:
    body = json.dumps(GOOD | {field: "\ud800"}).encode()
    response = served.http.post("/v1/completions", content=body)
    assert response.status_code == 200
    assert response.json()["choices"][0]["text"] == good_text


def test_too_long_says_by_how_much(served: ServedProcess) -> None:
    error = error_of(served.http.post("/v1/completions", json=GOOD | {"prompt": LONG}))
    assert error["code"] == "context_length_exceeded"
    for number in (CONTEXT, len(LONG), len(LONG) + 4):
        assert str(number) in error["message"]


def test_addresses_and_methods_that_do_not_exist(served: ServedProcess) -> None:
    error_of(served.http.get("/v1/nothing"), 404)
    error_of(served.http.get("/v1/completions"), 405)


@pytest.mark.parametrize(
    "data",
    [b"\x00\x01\x02\r\n\r\n", b"GET /" + b"x" * 100_000, b"POST /v1/completions HTTP/1.1\r\n"],
)
def test_what_is_no_http(served: ServedProcess, good_text: str, data: bytes) -> None:
    url = httpx.URL(served.url)
    assert url.port is not None
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    assert served.complete(**GOOD)["choices"][0]["text"] == good_text


def test_no_bad_request_left_a_trace(served: ServedProcess) -> None:
    """Nothing runs, holds blocks or was logged as the server's own fault."""
    for body in BAD_BODIES.values():
        served.http.post("/v1/completions", content=body)
    served.complete(**GOOD)
    assert served.metric("bitskip_num_requests_running") == 0
    assert served.metric("bitskip_num_requests_waiting") == 0
    assert served.metric("bitskip_request_rejected_total", reason="invalid_request") > 0
    assert served.metric("bitskip_request_rejected_total", reason="internal_error") == 0
    assert "Traceback" not in served.log

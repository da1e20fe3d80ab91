"""Errors: one shape, whatever goes wrong."""

from __future__ import annotations

import inspect
import json
import threading

import httpx
import pytest

import engine.errors
import server.errors
from engine.errors import EngineDeadError, EngineDrainingError
from server.errors import ERROR_KINDS, INTERNAL_MESSAGE, describe
from support.fake_async_engine import FakeAsyncEngine
from support.live_server import live_server, wait_until
from support.sse import parse_events


def error_classes() -> list[type[Exception]]:
    return [
        value
        for module in (engine.errors, server.errors)
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Exception) and value.__module__ == module.__name__
    ]


@pytest.mark.parametrize("error", error_classes())
def test_every_exception_class_is_in_the_table(error: type[Exception]) -> None:
    assert error in ERROR_KINDS


def test_the_classes_are_found() -> None:
    assert len(error_classes()) >= 10


def assert_error(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)
    assert response.headers["x-request-id"]
    return body["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "hi",}',
        b"[]",
        b'"hi"',
        b"null",
        b"\xff\xfe\x00",
        b'{"prompt": "hi", "temperature": NaN}',
        b'{"prompt": "hi", "temperature": Infinity}',
        b'{"prompt": "hi", "temperature": -Infinity}',
        b'{"prompt": "hi", "unknown": NaN}',
        b'{"prompt": "hi", "temperature": 1e999}',
        b'{"prompt": "hi", "logit_bias": {"5": 1e999}}',
        b'{"prompt": "hi", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 900 + b"NaN" + b"]" * 900 + b"}",
        b'{"prompt": "\\ud800"}',
    ],
)
def test_bodies_that_are_no_request(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/completions", content=body)
    error = assert_error(response, 400)
    assert error["type"] == "invalid_request_error"
    assert b"999" not in response.content
    json.loads(response.content, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"prompt": "hi", "temperature": NaN}', "temperature"),
        (b'{"prompt": "hi", "top_p": -Infinity}', "top_p"),
        (b'{"prompt": "hi", "temperature": 1e999}', "temperature"),
        (b'{"prompt": [1, NaN]}', "prompt"),
        (b'{"prompt": "hi", "speculative": {"exit_layer": NaN}}', "speculative.exit_layer"),
        (b"[NaN]", None),
    ],
)
def test_numbers_that_json_lacks_are_named(
    client: httpx.Client, body: bytes, param: str | None
) -> None:
    error = assert_error(client.post("/v1/completions", content=body), 400)
    assert error["param"] == param
    assert (param or "body") in str(error["message"]).lower()


def test_unknown_model(client: httpx.Client) -> None:
    for response in (
        client.post("/v1/completions", json={"prompt": "hi", "model": "other"}),
        client.get("/v1/models/other"),
    ):
        error = assert_error(response, 404)
        assert error["param"] == "model" and error["code"] == "model_not_found"
    response = client.post("/v1/completions", content=b'{"prompt": "hi", "model": "\\ud800"}')
    assert_error(response, 404)


def test_context_length(client: httpx.Client) -> None:
    for extras in ({}, {"stream": True}):
        body = {"prompt": "hi", "max_tokens": 511, **extras}
        error = assert_error(client.post("/v1/completions", json=body), 400)
        assert error["code"] == "context_length_exceeded"
        assert "maximum context length is 512 tokens" in str(error["message"])


def test_paths_and_methods(client: httpx.Client) -> None:
    assert_error(client.get("/nowhere"), 404)
    response = client.get("/v1/completions")
    assert_error(response, 405)
    assert response.headers["allow"] == "POST"


def test_request_ids_are_echoed_or_made(client: httpx.Client) -> None:
    assert client.get("/version", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    response = client.post("/v1/completions", json={}, headers={"x-request-id": "r-1"})
    assert response.headers["x-request-id"] == "r-1"
    made = {client.get("/version").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    long = client.get("/version", headers={"x-request-id": "x" * 5000})
    assert len(long.headers["x-request-id"]) < 200


@pytest.mark.parametrize("stage", ["submit", "encode"])
def test_internal_errors_tell_nothing(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    fake = FakeAsyncEngine()
    owner = fake if stage == "submit" else fake.tokenizer
    with live_server(fake) as running:
        monkeypatch.setattr(owner, stage, explode)
        response = httpx.post(f"{running.url}/v1/completions", json={"prompt": "hi"})
    error = assert_error(response, 500)
    assert error["message"] == INTERNAL_MESSAGE
    assert error["type"] == "server_error"


def test_a_prompt_that_is_refused_takes_the_others_along() -> None:
    with live_server(FakeAsyncEngine(hold_after=0)) as running:
        response = httpx.post(
            f"{running.url}/v1/completions", json={"prompt": ["ok", "x" * 600], "max_tokens": 1}
        )
        assert_error(response, 400)
        assert len(running.engine.aborted) == 1


@pytest.mark.parametrize("as_stream", [False, True])
def test_a_crash_answers_everybody(as_stream: bool) -> None:
    fake = FakeAsyncEngine(hold_after=1)
    with live_server(fake) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        body = {"prompt": ["a", "b"], "stream": as_stream, "max_tokens": 100}
        if as_stream:
            body["stream_options"] = {"include_usage": True}
            received = b""
            with client.stream("POST", "/v1/completions", json=body) as response:
                for part in response.iter_raw():
                    received += part
                    if received.count(b'"text":"G"') == 2 and fake.status != "dead":
                        running.call(fake.die)
            assert response.status_code == 200
            *_, error, usage = parse_events(received)
            assert error["error"]["code"] == "engine_dead"
            assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 2
        else:

            def crash() -> None:
                wait_until(lambda: len(fake.submitted) == 2)
                running.call(fake.die)

            thread = threading.Thread(target=crash)
            thread.start()
            error = assert_error(client.post("/v1/completions", json=body), 503)
            thread.join()
            assert error["code"] == "engine_dead"
        assert_error(client.post("/v1/completions", json={"prompt": "hi"}), 503)
        health = client.get("/health")
        error = assert_error(health, 503)
        assert error["code"] == "engine_dead"
        assert error["message"] == "the engine has stopped after an internal error"
        assert "retry-after" not in health.headers


def test_in_stream_and_whole_errors_have_one_shape() -> None:
    for error in (EngineDeadError("x"), EngineDrainingError("x"), RuntimeError("x")):
        assert set(describe(error)["error"]) == {"message", "type", "param", "code"}

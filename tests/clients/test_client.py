"""What the clients send, and what they make of the answers of the real server."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from clients import Speculative
from clients.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
)
from clients.options import (
    ChatOptions,
    ChatStreamOptions,
    CompletionOptions,
    CompletionStreamOptions,
    request_body,
)
from clients.types import Health, Metrics, TokenSource, Usage
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from support.client_drivers import Connect
from support.fake_async_engine import DEFAULT_TEXT, FakeAsyncEngine
from support.live_server import LiveServer, live_server, wait_until
from support.scripted_server import (
    DONE,
    answer,
    envelope,
    event,
    event_stream,
    refusal,
    scripted_server,
)
from support.served_process import ServedProcess

MESSAGES = [{"role": "user", "content": "hello"}]
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 4},
}


def test_a_whole_completion(connect: Connect, server: LiveServer) -> None:
    completion = connect(server.url).call(
        "complete",
        "hello",
        max_tokens=100,
        n=2,
        exit_layer=6,
        speculative=Speculative(exit_layer=2, num_speculations=3),
        logprobs=1,
        return_metrics=True,
        return_token_sources=True,
    )
    assert completion.model == "tiny"
    assert completion.text == completion.choices[0].text == DEFAULT_TEXT
    assert [choice.finish_reason for choice in completion.choices] == ["stop", "stop"]
    for choice in completion.choices:
        assert "".join(token.text for token in choice.token_sources) == choice.text
        assert {token.source for token in choice.token_sources} == set(TokenSource)
        assert len(choice.logprobs.tokens) == len(choice.token_sources)
        assert choice.metrics.exit_layer == 6
        assert choice.metrics.speculation.draft_exit_layer == 2
        assert choice.metrics.speculation.accepted_per_position == (4, 2)
    assert completion.metrics is None  # Two choices: each has its own.
    assert isinstance(completion.usage, Usage)
    assert completion.usage.prompt_tokens == 5
    assert completion.usage.accepted_prediction_tokens == 12
    params = server.engine.submitted[-1][2]
    assert params.exit_layer == 6
    assert params.speculative is not None
    assert (params.speculative.exit_layer, params.speculative.num_speculations) == (2, 3)


def test_a_streamed_completion_says_the_same(connect: Connect, server: LiveServer) -> None:
    driver = connect(server.url)
    options = {"max_tokens": 100, "return_metrics": True, "return_token_sources": True, "n": 2}
    whole = driver.call("complete", "hello", **options)
    chunks, usage = driver.stream("stream", "hello", **options)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    for expected in whole.choices:
        parts = [choice for choice in choices if choice.index == expected.index]
        assert "".join(part.text for part in parts) == expected.text
        assert sum((part.token_sources for part in parts), ()) == expected.token_sources
        assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1].finish_reason == expected.finish_reason
    assert usage == whole.usage
    assert chunks[-1].choices == () and chunks[-1].usage == usage
    assert [chunk.metrics for chunk in chunks if chunk.metrics] == [
        choice.metrics for choice in whole.choices
    ]


def test_usage_can_be_left_out_of_a_stream(connect: Connect, server: LiveServer) -> None:
    chunks, usage = connect(server.url).stream(
        "stream", "hello", stream_options={"include_usage": False}
    )
    assert usage is None and all(chunk.choices for chunk in chunks)


def test_a_stream_that_is_left_ends_the_request(connect: Connect) -> None:
    fake = FakeAsyncEngine(hold_after=4)
    with live_server(fake) as server:
        chunks, _ = connect(server.url).stream("stream", "hello", limit=1)
        assert len(chunks) == 1
        wait_until(lambda: fake.aborted)


def test_one_connection_serves_many_requests(
    connect: Connect, server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Streams too: they are read to their very end."""
    caplog.set_level(logging.INFO, "uvicorn.access")
    driver = connect(server.url)
    for _ in range(3):
        driver.stream("stream", "hello")
        driver.call("complete", "hello")
    peers = [record.args[0] for record in caplog.records if isinstance(record.args, tuple)]
    assert len(peers) == 6 and len(set(peers)) == 1


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_base_urls_as_people_write_them(connect: Connect, server: LiveServer, suffix: str) -> None:
    assert connect(server.url + suffix).call("version")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", ""])
def test_base_urls_that_are_none(connect: Connect, url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        connect(url)


@pytest.mark.parametrize("given", ["schlüssel", "schlüssel\n"])
def test_keys_need_not_be_ascii(connect: Connect, given: str) -> None:
    with live_server(api_key=("schlüssel",)) as guarded:
        assert connect(guarded.url, api_key=given).call("models")


@pytest.mark.parametrize("key", ["", " \n", "sec\nret", "sec\0ret"])
def test_keys_that_no_header_can_hold(connect: Connect, key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        connect("http://127.0.0.1:9", api_key=key)
    assert "sec" not in str(caught.value)


def test_what_the_server_says_of_itself(connect: Connect, server: LiveServer) -> None:
    driver = connect(server.url)
    first, second = driver.call("models")
    assert (first.id, second.id, first.num_layers) == ("tiny", "tiny-alias", 8)
    assert first.max_model_len == 512 and first.exit_layers[-1] == 8
    assert driver.call("health") == Health(True, "ready")
    driver.call("complete", "hello", max_tokens=3)
    scrape = driver.call("metrics")
    assert scrape.total("bitskip_model_info", variant="v1") == 1
    finished = "bitskip_request_success_total"
    assert scrape.total(finished) >= scrape.total(finished, finished_reason="length") > 0
    assert scrape.total("no_such_metric") == 0


def test_health_of_a_server_that_drains(connect: Connect) -> None:
    with live_server() as server:
        driver = connect(server.url)
        server.engine.status = "draining"
        assert driver.call("health") == Health(False, "shutting_down")
        with pytest.raises(UnavailableError) as raised:
            driver.call("complete", "hello")
        assert (raised.value.status, raised.value.code) == (503, "shutting_down")
        server.engine.status = "ready"


def test_errors_of_requests(connect: Connect, server: LiveServer) -> None:
    driver = connect(server.url)
    with pytest.raises(ContextLengthError) as too_long:
        driver.call("complete", "hello", max_tokens=10_000)
    assert isinstance(too_long.value, BadRequestError)
    assert (too_long.value.status, too_long.value.code) == (400, "context_length_exceeded")
    with pytest.raises(BadRequestError) as bad:
        driver.stream("stream", "hello", exit_layer=9)
    assert bad.value.param == "exit_layer" and bad.value.request_id
    with pytest.raises(NotFoundError) as missing:
        driver.call("complete", "hello", model="other")
    assert missing.value.code == "model_not_found"


def test_an_engine_that_dies_in_mid_stream(connect: Connect) -> None:
    fake = FakeAsyncEngine(hold_after=4)
    with live_server(fake) as server, ThreadPoolExecutor() as background:
        driver = connect(server.url)

        def kill() -> None:
            wait_until(lambda: fake.submitted)
            server.call(fake.die)

        killing = background.submit(kill)
        with pytest.raises(UnavailableError) as raised:
            driver.stream("stream", "hello")
        killing.result()
        assert (raised.value.status, raised.value.code) == (None, "engine_dead")
        assert raised.value.request_id


def test_an_answer_that_has_begun_is_not_asked_for_again(connect: Connect) -> None:
    error = {"error": {"message": "m", "type": "t", "param": None, "code": "shutting_down"}}
    with scripted_server(event_stream(event(envelope()), event(error), DONE)) as scripted:
        with pytest.raises(UnavailableError, match="m"):
            connect(scripted.url).stream("stream", "hello")
        assert len(scripted.received) == 1


def test_an_error_event_may_come_first(connect: Connect) -> None:
    error = {"error": {"message": "m", "type": "invalid_request_error", "param": "p", "code": None}}
    with (
        scripted_server(event_stream(event(error), DONE)) as scripted,
        pytest.raises(BadRequestError) as raised,
    ):
        connect(scripted.url).stream("stream", "hello")
    assert raised.value.param == "p"


@pytest.mark.parametrize(
    ("status", "expected"), [(401, AuthenticationError), (405, APIError), (502, APIError)]
)
def test_statuses(connect: Connect, status: int, expected: type[APIError]) -> None:
    with scripted_server(refusal(status)) as scripted, pytest.raises(expected) as raised:
        connect(scripted.url).call("complete", "hello")
    assert raised.value.status == status


def test_chats(connect: Connect) -> None:
    message = {"role": "assistant", "content": "hi there"}
    logprob = {"token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": []}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "stop",
        "logprobs": {"content": [logprob], "refusal": None},
    }
    deltas = [
        event(envelope(choices=[{"index": 0, "delta": delta, "finish_reason": reason}]))
        for delta, reason in (
            ({"role": "assistant", "content": "hi"}, None),
            ({"content": " there"}, "stop"),
        )
    ]
    with scripted_server(
        answer(200, envelope(choices=[choice], usage=USAGE)),
        event_stream(*deltas, event(envelope(usage=USAGE)), DONE),
    ) as scripted:
        driver = connect(scripted.url, api_key="secret")
        whole = driver.call("chat", MESSAGES, max_completion_tokens=5, exit_layer=3, seed=None)
        chunks, usage = driver.stream("stream_chat", MESSAGES, speculative="auto")
    assert whole.text == "".join(chunk.text for chunk in chunks) == "hi there"
    assert whole.choices[0].role == chunks[0].choices[0].role == "assistant"
    (token,) = whole.choices[0].logprobs
    assert (token.token, token.logprob, token.bytes) == ("hi", -0.5, b"hi")
    assert whole.usage == usage == Usage(3, 2, 5, 1, 2, 4)
    first, second = scripted.received
    assert first.path == second.path == "/v1/chat/completions"
    assert first.headers["authorization"] == "Bearer secret"
    assert first.body == {"messages": MESSAGES, "max_completion_tokens": 5, "exit_layer": 3}
    assert second.body == {
        "messages": MESSAGES,
        "speculative": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_tokens_and_load(connect: Connect) -> None:
    with scripted_server(
        answer(200, {"tokens": [5, 6], "count": 2, "max_model_len": 9}),
        answer(200, {"prompt": "ab"}),
        answer(200, {"server_load": 3}),
    ) as scripted:
        driver = connect(scripted.url)
        tokens = driver.call("tokenize", "ab", add_special_tokens=False)
        assert (tokens.tokens, tokens.count, tokens.max_model_len) == ((5, 6), 2, 9)
        assert driver.call("detokenize", tokens.tokens) == "ab"
        assert driver.call("load") == {"server_load": 3}
    assert [request.body for request in scripted.received] == [
        {"prompt": "ab", "add_special_tokens": False},
        {"tokens": [5, 6]},
        None,
    ]


@pytest.mark.parametrize(
    "reply",
    [answer(200, {"hello": "world"}), answer(200, ["x"]), event_stream(event({"id": 1}), DONE)],
    ids=["other object", "list", "stream"],
)
def test_answers_that_are_none(connect: Connect, reply: Any) -> None:
    with scripted_server(reply) as scripted, pytest.raises(ProtocolError):
        connect(scripted.url).call("complete", "hello")


@pytest.mark.parametrize(
    "reply",
    [answer(200, envelope()), event_stream(b"data: {nonsense\n\n", DONE)],
    ids=["no stream", "no JSON"],
)
def test_streams_that_are_none(connect: Connect, reply: Any) -> None:
    with scripted_server(reply) as scripted, pytest.raises(ProtocolError):
        connect(scripted.url).stream("stream", "hello")


def test_metrics_of_a_choice_that_drafted_nothing(connect: Connect) -> None:
    metrics = {
        "exit_layer": 4,
        "time_to_first_token_ms": None,
        "generation_time_ms": 1.5,
        "queue_time_ms": 0.5,
        "mean_itl_ms": None,
        "tokens_per_second": None,
        "seed": 9,
        "speculative_decoding": None,
    }
    with scripted_server(answer(200, envelope(metrics=metrics))) as scripted:
        completion = connect(scripted.url).call("complete", "hello")
    assert completion.metrics == Metrics(4, None, 1.5, 0.5, None, None, 9, None)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(CompletionStreamOptions, CompletionRequest), (ChatStreamOptions, ChatCompletionRequest)],
)
def test_options_are_what_the_server_knows(ours: Any, theirs: Any) -> None:
    """Neither list falls behind the other."""
    for_the_client = {"timeout_s", "extra"}
    without_effect = {"user"}
    required = {"prompt", "messages", "stream"}
    known = ours.__optional_keys__ - for_the_client - without_effect
    assert known == theirs.model_fields.keys() - required


def test_every_extra_of_a_real_chat(connect: Connect, demo: ServedProcess) -> None:
    driver = connect(demo.url)
    options = {
        "max_completion_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 2,
        "return_metrics": True,
        "return_token_sources": True,
        "return_token_ids": True,
        "speculative": Speculative(exit_layer=3, num_speculations=2),
    }
    messages = [{"role": "user", "content": "Once upon a time"}]
    whole = driver.call("chat", messages, prompt_logprobs=1, **options)
    (choice,) = whole.choices
    assert choice.role == "assistant" and choice.finish_reason == "length"
    assert len(choice.logprobs) == len(choice.token_ids) == len(choice.token_sources) == 8
    assert b"".join(entry.bytes for entry in choice.logprobs).decode() == whole.text
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs)
    scores = whole.prompt_logprobs
    assert len(scores) == len(whole.prompt_token_ids) == whole.usage.prompt_tokens
    assert scores[0] is None
    for token_id, entry in zip(whole.prompt_token_ids[1:], scores[1:], strict=True):
        assert entry[token_id].logprob < 0 and entry[token_id].rank >= 1
    assert whole.metrics.speculation.draft_exit_layer == 3
    chunks, usage = driver.stream("stream_chat", messages, **options)
    assert chunks[0].prompt_token_ids == whole.prompt_token_ids
    parts = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(part.text for part in parts) == whole.text
    assert [part.role for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
    assert sum((part.logprobs for part in parts), ()) == choice.logprobs
    assert usage is not None and usage.completion_tokens == 8


def test_options_that_are_not_sent() -> None:
    body = request_body(
        CompletionOptions,
        {
            "seed": None,
            "timeout_s": 3.0,
            "logit_bias": {5: 1.0},
            "extra": {"new": 1},
            "stop": ("x",),
        },
        prompt=[[1, 2]],
    )
    assert body == {"prompt": [[1, 2]], "logit_bias": {"5": 1.0}, "new": 1, "stop": ["x"]}


@pytest.mark.parametrize("kind", [CompletionOptions, ChatOptions, ChatStreamOptions])
def test_unknown_options_are_errors(kind: type[Any]) -> None:
    with pytest.raises(TypeError, match="max_token"):
        request_body(kind, {"max_token": 3})


def test_speculative_objects_say_only_what_was_chosen() -> None:
    assert Speculative(num_speculations="auto").to_body() == {"num_speculations": "auto"}
    assert Speculative(exit_layer=3, method="early_exit").to_body() == {
        "exit_layer": 3,
        "method": "early_exit",
    }

"""What one request may ask for, and how many may wait, over HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server import body_limit
from support.fake_async_engine import DEFAULT_TEXT, FakeAsyncEngine
from support.live_server import PATIENCE_S, LiveServer, live_server, wait_until
from support.sse import joined_text, parse_events

BODY = {"prompt": "hi", "max_tokens": 100}


def rejected(server: LiveServer, reason: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    name = f'bitskip_request_rejected_total{{model_name="tiny",reason="{reason}"}} '
    values = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return float(values[0]) if values else 0.0


def post(server: LiveServer, **extras: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=BODY | extras, timeout=30)


def load(server: LiveServer) -> dict[str, int]:
    return httpx.get(f"{server.url}/load").json()


class Waiter:
    """A request in a thread of its own."""

    def __init__(self, server: LiveServer, **extras: Any) -> None:
        self.response: httpx.Response | None = None
        self._thread = threading.Thread(target=self._run, args=(server, extras))
        self._thread.start()

    def _run(self, server: LiveServer, extras: dict[str, Any]) -> None:
        self.response = post(server, **extras)

    def finish(self) -> httpx.Response:
        self._thread.join(30)
        assert self.response is not None
        return self.response


# --- one request ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict() -> Iterator[LiveServer]:
    with live_server(
        max_prompts=2, max_n=3, max_stop_strings=2, max_stop_length=5, max_body_bytes=1000
    ) as server:
        yield server


@pytest.mark.parametrize(
    ("fits", "too_much", "param", "limit"),
    [
        ({"prompt": ["a", "b"]}, {"prompt": ["a", "b", "c"]}, "prompt", 2),
        ({"n": 3}, {"n": 4}, "n", 3),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b", "c"]}, "stop", 2),
        ({"stop": "12345"}, {"stop": "123456"}, "stop", 5),
    ],
)
def test_what_a_request_may_hold(
    strict: LiveServer,
    fits: dict[str, Any],
    too_much: dict[str, Any],
    param: str,
    limit: int,
) -> None:
    assert post(strict, **fits).status_code == 200
    before = rejected(strict, "limit_exceeded")
    response = post(strict, **too_much)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "limit_exceeded")
    assert f"the {limit} that" in error["message"]
    assert rejected(strict, "limit_exceeded") == before + 1


def test_limits_can_be_wider_than_openais() -> None:
    stop = [f"{number}!" for number in range(20)]
    with live_server(max_stop_strings=20) as server:
        assert post(server, stop=stop).status_code == 200
        assert server.engine.submitted[0][2].stop == tuple(stop)


def body_of(num_bytes: int) -> bytes:
    start = b'{"max_tokens": 1, "prompt": "'
    return start + b"x" * (num_bytes - len(start) - 2) + b'"}'


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_bodies_have_a_size(strict: LiveServer, in_chunks: bool, path: str) -> None:
    def send(num_bytes: int) -> httpx.Response:
        body = body_of(num_bytes)
        pieces = (body[i : i + 100] for i in range(0, len(body), 100))
        return httpx.post(f"{strict.url}{path}", content=pieces if in_chunks else body)

    assert send(500).status_code == 200
    before = rejected(strict, "body_too_large")
    response = send(1001)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert "1000 bytes" in response.json()["error"]["message"]
    assert rejected(strict, "body_too_large") == before + 1
    # 1000 is not too large: it gets as far as the context's length.
    assert send(1000).status_code in (200, 400)


def test_a_body_without_end_is_cut_off(strict: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "LINGER_S", 0.2)
    url = httpx.URL(strict.url)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    with socket.create_connection((url.host, url.port or 0), timeout=20) as connection:
        connection.sendall(head.encode() + chunk)
        # Answered although the body goes on.
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
        deadline = time.monotonic() + PATIENCE_S
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                connection.sendall(chunk)
    assert post(strict).status_code == 200


def test_a_large_body_that_was_announced_is_answered(strict: LiveServer) -> None:
    response = httpx.post(f"{strict.url}/v1/completions", content=b"x" * 200_000, timeout=30)
    assert response.status_code == 413


# --- the queue -----------------------------------------------------------------------------------


@pytest.fixture
def busy() -> Iterator[LiveServer]:
    """One choice runs until it is released, two may wait."""
    fake = FakeAsyncEngine(hold_after=1, num_places=1)
    with live_server(fake, max_queued_requests=2, max_queued_prompt_tokens=1000) as server:
        yield server


def occupy(server: LiveServer, num_waiting: int, **extras: Any) -> list[Waiter]:
    """A running request, and some behind it."""
    waiters = []
    for number in range(num_waiting + 1):
        waiters.append(Waiter(server, **extras))
        wait_until(lambda number=number: load(server)["server_load"] == number + 1)
    wait_until(lambda: load(server)["num_requests_waiting"] == num_waiting)
    return waiters


def release(server: LiveServer, waiters: list[Waiter]) -> list[httpx.Response]:
    server.call(server.engine.release)
    return [waiter.finish() for waiter in waiters]


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_refuses(busy: LiveServer, stream: bool) -> None:
    waiters = occupy(busy, 2)
    response = post(busy, stream=stream)
    assert response.status_code == 429
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "rate_limit_error",
        "queue_full",
        None,
    )
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert rejected(busy, "queue_full") == 1
    assert httpx.get(f"{busy.url}/health").status_code == 200
    assert {answer.status_code for answer in release(busy, waiters)} == {200}
    assert post(busy, stream=stream).status_code == 200


def test_what_is_refused_is_not_tokenised(
    busy: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiters = occupy(busy, 2)
    with monkeypatch.context() as patch:
        patch.setattr(busy.engine.tokenizer, "encode", lambda *_: pytest.fail("tokenised"))
        assert post(busy, prompt="x" * 100_000).status_code == 429
        assert len(busy.engine.submitted) == 3
    release(busy, waiters)


def test_every_choice_of_every_prompt_needs_a_place(busy: LiveServer) -> None:
    waiters = occupy(busy, 1)
    assert post(busy, n=2).status_code == 429
    assert post(busy, prompt=["a", "b"]).status_code == 429
    too_many = post(busy, n=2, prompt=["a", "b"])
    assert too_many.status_code == 400
    assert too_many.json()["error"]["code"] == "limit_exceeded"
    waiters += [Waiter(busy)]
    wait_until(lambda: load(busy)["num_requests_waiting"] == 2)
    release(busy, waiters)


def test_prompts_that_wait_may_only_be_so_long(busy: LiveServer) -> None:
    waiters = occupy(busy, 1, prompt="x" * 400)
    # Bytes are the fake's tokens: the estimate of 100 was put right.
    assert load(busy)["num_waiting_prompt_tokens"] == 400
    response = post(busy, prompt="x" * 2500)
    assert response.status_code == 429
    assert "400 tokens are waiting" in response.json()["error"]["message"]
    waiters.append(Waiter(busy))
    wait_until(lambda: load(busy)["num_requests_waiting"] == 2)
    release(busy, waiters)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_queue_frees_the_place(busy: LiveServer, stream: bool) -> None:
    waiters = occupy(busy, 1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{busy.url}/v1/completions", json=BODY | {"stream": stream}, timeout=0.3)
    wait_until(lambda: load(busy)["num_requests_waiting"] == 1)
    wait_until(lambda: len(busy.engine.aborted) == 1)
    waiters.append(Waiter(busy))
    wait_until(lambda: load(busy)["num_requests_waiting"] == 2)
    release(busy, waiters)
    assert load(busy) == load(busy) | {
        "server_load": 0,
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "num_waiting_prompt_tokens": 0,
    }


def test_refused_prompts_leave_no_trace(busy: LiveServer) -> None:
    for extras in ({"prompt": "x" * 600}, {"prompt": [""]}, {"n": 2, "prompt": [[9999]]}):
        assert post(busy, **extras).status_code == 400
        assert load(busy)["server_load"] == 0


@pytest.fixture
def impatient() -> Iterator[LiveServer]:
    """One choice runs until it is released; the others may wait for a moment."""
    fake = FakeAsyncEngine(hold_after=1, num_places=1)
    with live_server(fake, queue_timeout=0.2) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
def test_waiting_has_an_end(impatient: LiveServer, stream: bool) -> None:
    first = occupy(impatient, 0, stream=stream)
    response = post(impatient, stream=stream)
    assert response.status_code == 408
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "queue_timeout")
    assert "0.2 s" in error["message"] and int(response.headers["retry-after"]) > 0
    assert len(impatient.engine.aborted) == 1
    assert rejected(impatient, "queue_timeout") == 1
    assert load(impatient)["server_load"] == 1
    (answer,) = release(impatient, first)
    assert answer.status_code == 200


def test_what_runs_may_take_its_time(impatient: LiveServer) -> None:
    (first,) = occupy(impatient, 0, stream=True)
    assert post(impatient).status_code == 408  # As long has the first been running.
    (answer,) = release(impatient, [first])
    assert joined_text(parse_events(answer.content)) == DEFAULT_TEXT


def test_leaving_before_the_end_of_the_wait(impatient: LiveServer) -> None:
    first = occupy(impatient, 0)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{impatient.url}/v1/completions", json=BODY, timeout=0.1)
    wait_until(lambda: len(impatient.engine.aborted) == 1)
    wait_until(lambda: load(impatient)["server_load"] == 1)
    release(impatient, first)
    assert rejected(impatient, "queue_timeout") == 0


@pytest.mark.parametrize("how", ["die", "drain"])
def test_who_waits_is_answered_when_the_engine_ends(how: str) -> None:
    fake = FakeAsyncEngine(hold_after=1, num_places=1)
    with live_server(fake, queue_timeout=3600, shutdown_timeout=0.1) as server:
        waiters = occupy(server, 1)
        ending = fake.die if how == "die" else server.lifecycle.request_shutdown
        server.call(ending)
        answers = [waiter.finish() for waiter in waiters]
    codes = {answer.json()["error"]["code"] for answer in answers}
    assert {answer.status_code for answer in answers} == {503}
    assert codes == {"engine_dead" if how == "die" else "shutting_down"}

"""Clients that leave, silence, and shutting down."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.errors import ConfigError
from server.listener import bind
from server.settings import ServerSettings
from support.fake_async_engine import DEFAULT_TEXT, FakeAsyncEngine
from support.live_server import LiveServer, live_server, wait_until
from support.sse import joined_text, parse_events

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}


def body(**extras: Any) -> dict[str, Any]:
    return {"prompt": "hi", "max_tokens": 100, **extras}


class Background:
    """A request in a thread of its own."""

    def __init__(self, server: LiveServer, **extras: Any) -> None:
        self.status = 0
        self.content = b""
        self._url = f"{server.url}/v1/completions"
        self._body = body(**extras)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=30) as response:
            self.status = response.status_code
            for part in response.iter_raw():
                self.content += part

    def finish(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("num_prompts", [1, 2])
def test_leaving_a_stream_aborts_it(num_prompts: int) -> None:
    fake = FakeAsyncEngine(hold_after=1)
    with live_server(fake) as server, httpx.Client(base_url=server.url) as client:
        request = body(stream=True, prompt=["hi"] * num_prompts)
        with client.stream("POST", "/v1/completions", json=request) as response:
            parts = response.iter_raw()
            assert next(parts)
            assert fake.aborted == []
        wait_until(lambda: len(fake.aborted) == num_prompts)
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("as_stream", [False, True])
def test_leaving_before_anything_came_aborts(as_stream: bool) -> None:
    fake = FakeAsyncEngine(hold_after=0)
    with live_server(fake) as server:
        with pytest.raises(httpx.ReadTimeout):
            # A stream's headers come at once, its first event does not.
            httpx.post(f"{server.url}/v1/completions", json=body(stream=as_stream), timeout=0.3)
        wait_until(lambda: len(fake.aborted) == 1)
        assert len(fake.submitted) == 1


def test_leaving_in_the_middle_of_the_body_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with live_server() as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
            connection.sendall(head.encode())
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_finished_requests_are_not_aborted(server: LiveServer, client: httpx.Client) -> None:
    before = len(server.engine.aborted)
    for as_stream in (False, True):
        assert client.post("/v1/completions", json=body(stream=as_stream)).status_code == 200
    assert len(server.engine.aborted) == before


def test_silence_is_filled_with_comments() -> None:
    fake = FakeAsyncEngine(hold_after=1)
    with live_server(fake, ping_interval=0.05) as server:
        request = Background(server, stream=True)
        wait_until(lambda: request.content.count(b": ping\n\n") >= 3)
        server.call(fake.release)
        request.finish()
    events = parse_events(request.content.replace(b": ping\n\n", b""))
    assert joined_text(events) == DEFAULT_TEXT


def test_no_comments_while_there_is_something_to_say(server: LiveServer) -> None:
    request = Background(server, stream=True)
    request.finish()
    assert b"\n:" not in request.content and not request.content.startswith(b":")


def test_drain_lets_requests_finish_and_refuses_new_ones() -> None:
    fake = FakeAsyncEngine(hold_after=1)
    with live_server(fake) as server, httpx.Client(base_url=server.url) as client:
        running = Background(server, stream=True)
        wait_until(lambda: running.content)
        server.call(server.lifecycle.request_shutdown)
        wait_until(lambda: fake.status == "draining")
        for response in (client.post("/v1/completions", json=body()), client.get("/health")):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "shutting_down"
            assert int(response.headers["retry-after"]) > 0
        assert client.get("/metrics").status_code == 200
        server.call(fake.release)
        running.finish()
        server.join()
    assert joined_text(parse_events(running.content)) == DEFAULT_TEXT
    assert server.exit_code == 0 and fake.stopped
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_what_outlives_the_timeout_ends_with_an_error() -> None:
    fake = FakeAsyncEngine(hold_after=1)
    with live_server(fake, shutdown_timeout=0.1) as server:
        streamed = Background(server, stream=True, stream_options={"include_usage": True})
        whole = Background(server)
        wait_until(lambda: streamed.content and len(fake.submitted) == 2)
        server.call(server.lifecycle.request_shutdown)
        for request in (streamed, whole):
            request.finish()
        server.join()
    first, error, usage = parse_events(streamed.content)
    assert streamed.status == 200
    assert first["choices"][0]["finish_reason"] is None
    assert error["error"]["code"] == "shutting_down"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 1
    assert whole.status == 503 and b'"shutting_down"' in whole.content
    assert server.exit_code == 0


def test_told_twice_it_exits_now() -> None:
    fake = FakeAsyncEngine(hold_after=1)
    with (
        live_server(fake, shutdown_timeout=3600) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json=body(stream=True)),
    ):
        server.call(server.lifecycle.request_shutdown)
        wait_until(lambda: fake.status == "draining")
        server.call(server.lifecycle.request_shutdown)
        server.join()
    assert server.exit_code == 1


def test_an_engine_that_does_not_start_ends_the_server() -> None:
    program = """
import sys
from prometheus_client import CollectorRegistry
from engine.errors import CheckpointError
from server.app import create_app
from server.lifecycle import Lifecycle
from server.listener import bind
from server.settings import ServerSettings
from support.fake_async_engine import FakeAsyncEngine
from support.live_server import loaded

engine = FakeAsyncEngine(start_error=CheckpointError("broken"))
settings = ServerSettings()
app = create_app(settings, CollectorRegistry())
try:
    Lifecycle(loaded(engine), app, settings, bind("127.0.0.1", 0)).run()
except CheckpointError as error:
    sys.exit(f"caught {error}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.strip().endswith("caught broken")


PROCESS = """
import sys
from prometheus_client import CollectorRegistry
from server.app import create_app
from server.lifecycle import Lifecycle
from server.listener import address_of, bind
from server.settings import ServerSettings
from support.fake_async_engine import FakeAsyncEngine
from support.live_server import loaded

engine = FakeAsyncEngine(hold_after=1)
settings = ServerSettings(shutdown_timeout=float(sys.argv[1]))
app = create_app(settings, CollectorRegistry())
bound = bind("127.0.0.1", 0)
lifecycle = Lifecycle(loaded(engine), app, settings, bound)
code = lifecycle.run(on_ready=lambda _: print(address_of(bound), flush=True))
assert not {"torch", "transformers"} & set(sys.modules), "the server has pulled in torch"
sys.exit(code)
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def spawn(processes: list[subprocess.Popen[str]], timeout_s: float) -> tuple[Any, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(timeout_s)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes.append(process)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def wait_for_listener(url: str) -> None:
    def answers() -> bool:
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers)


def test_sigterm_drains_without_torch(processes: list[subprocess.Popen[str]]) -> None:
    process, url = spawn(processes, 0.2)
    wait_for_listener(url)
    with httpx.stream("POST", f"{url}/v1/completions", json=body(stream=True)) as response:
        parts = response.iter_raw()
        received = next(parts)
        process.send_signal(signal.SIGTERM)
        received += b"".join(parts)
    assert parse_events(received)[-1]["error"]["code"] == "shutting_down"
    assert process.wait(30) == 0, process.stderr.read()


def test_second_sigterm_is_obeyed_at_once(processes: list[subprocess.Popen[str]]) -> None:
    process, url = spawn(processes, 3600)
    wait_for_listener(url)
    with httpx.stream("POST", f"{url}/v1/completions", json=body(stream=True)) as response:
        parts = response.iter_raw()  # Dropped, it would close the connection.
        assert next(parts)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1


def test_a_port_that_is_taken_says_so() -> None:
    with bind("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*[Aa]ddress already in use"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot listen on"):
        bind("no.such.host.invalid", 80)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServerSettings().port = 1


def test_answers_are_sent_at_once() -> None:
    """asyncio turns Nagle's algorithm off only on sockets that name their protocol."""
    with bind("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP

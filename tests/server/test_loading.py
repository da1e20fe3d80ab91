"""A server before its model is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from engine.errors import CheckpointError
from server.engine_api import Engine
from server.loading import BackgroundLoad, CheckCancelled, LoadCancelledError
from support.fake_async_engine import DEFAULT_TEXT, FakeAsyncEngine
from support.live_server import LiveServer, live_server, wait_until

BODY = {"prompt": "hi", "max_tokens": 100}


@pytest.fixture
def loading() -> Future[Engine]:
    """A model that is being loaded until the test says otherwise."""
    future: Future[Engine] = Future()
    future.set_running_or_notify_cancel()
    return future


@pytest.fixture
def early(loading: Future[Engine]) -> Iterator[LiveServer]:
    """A server that has nothing to serve yet."""
    with live_server(loading=loading) as server:
        yield server


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/ping"),
        ("GET", "/load"),
        ("GET", "/v1/models"),
        ("GET", "/tokenizer_info"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
    ],
)
def test_everything_is_answered_503_while_loading(
    early: LiveServer, method: str, path: str
) -> None:
    response = httpx.request(method, f"{early.url}{path}", json=BODY)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "loading"
    assert int(response.headers["retry-after"]) > 0


def test_metrics_and_version_need_no_model(early: LiveServer) -> None:
    assert httpx.get(f"{early.url}/version").status_code == 200
    httpx.post(f"{early.url}/v1/completions", json=BODY)
    text = httpx.get(f"{early.url}/metrics").text
    assert 'bitskip_request_rejected_total{model_name="tiny",reason="loading"} 1.0' in text
    assert "bitskip_build_info" in text and "bitskip_model_info{" not in text


def test_a_model_that_arrives_is_served(early: LiveServer, loading: Future[Engine]) -> None:
    assert httpx.get(f"{early.url}/health").status_code == 503
    loading.set_result(early.engine)
    wait_until(lambda: httpx.get(f"{early.url}/health").status_code == 200)
    answer = httpx.post(f"{early.url}/v1/completions", json=BODY).json()
    assert answer["choices"][0]["text"] == DEFAULT_TEXT
    assert "bitskip_model_info{" in httpx.get(f"{early.url}/metrics").text


def test_a_model_that_cannot_be_loaded_ends_the_server(
    early: LiveServer, loading: Future[Engine]
) -> None:
    loading.set_exception(CheckpointError("broken"))
    early.join()
    assert isinstance(early.error, CheckpointError) and early.exit_code is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{early.url}/health")


def test_an_engine_that_does_not_start_is_never_asked() -> None:
    engine = FakeAsyncEngine(start_error=CheckpointError("no threads"))
    with live_server(engine) as server:
        server.join()
    assert isinstance(server.error, CheckpointError)
    assert engine.submitted == []


def test_told_to_shut_down_it_does_not_wait_for_the_model(
    early: LiveServer, loading: Future[Engine]
) -> None:
    wait_until(lambda: httpx.get(f"{early.url}/health").status_code == 503)
    early.call(early.lifecycle.request_shutdown)
    early.join()
    assert early.exit_code == 0
    loading.set_result(early.engine)
    assert early.engine.status == "loading"


def test_background_loading_brings_the_engine() -> None:
    engine = FakeAsyncEngine()
    loading = BackgroundLoad(lambda _: engine)
    assert loading.result.result(20) is engine
    assert loading.cancel(20)


def test_background_loading_brings_its_errors() -> None:
    def load(_: CheckCancelled) -> Any:
        raise CheckpointError("broken")

    with pytest.raises(CheckpointError, match="broken"):
        BackgroundLoad(load).result.result(20)


def test_background_loading_can_be_cancelled() -> None:
    begun = threading.Event()

    def load(check_cancelled: CheckCancelled) -> Any:
        begun.set()
        while True:
            check_cancelled()

    loading = BackgroundLoad(load)
    assert begun.wait(20) and not loading.result.done()
    assert loading.cancel(20)
    with pytest.raises(LoadCancelledError):
        loading.result.result(0)


def test_loading_that_cannot_be_cancelled_is_left_behind() -> None:
    release = threading.Event()
    engine = FakeAsyncEngine()

    def load(_: CheckCancelled) -> Engine:
        release.wait(20)
        return engine

    loading = BackgroundLoad(load)
    assert not loading.cancel(0.01)
    release.set()
    assert loading.cancel(20)

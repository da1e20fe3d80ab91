"""What the page says, and does, when a request is not answered as asked."""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from server.engine_api import Engine
from support.browser import Browser
from support.fake_async_engine import FakeAsyncEngine
from support.gateway import Answer, Faults, Gateway, gateway
from support.live_server import live_server, wait_until
from support.playground_page import PlaygroundPage
from support.served_process import ServedProcess

KEY = "sesame-1"


def error(message: str, code: str | None = None) -> dict[str, str | None]:
    return {"message": message, "type": "some_error", "param": None, "code": code}


def use_key(page: PlaygroundPage, key: str) -> None:
    page.set("key", key)
    page.browser.find("#key-form button").click()


def test_a_missing_key_is_asked_for_and_kept_in_the_tab_alone(browser: Browser) -> None:
    with live_server(api_key=(KEY,)) as server:
        page = PlaygroundPage(browser, server.url)
        page.open()
        page.wait_for_error("send the header Authorization")
        assert page.error.startswith("The server wants an API key\n")
        assert browser.run("return document.activeElement.id") == "key"
        use_key(page, "wrong")
        page.wait_for_error("not one of this server's")
        browser.wait_for("!document.getElementById('key-form').hidden")
        use_key(page, KEY)
        page.wait_for_model()
        assert page.error == "" and not browser.find("#key-form").is_displayed()
        page.set("max-tokens", 8)
        page.generate()
        assert len(page.tokens()) == 8
        kept = "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
        assert browser.run(kept) == [[KEY], 0, ""]
        browser.open(page.url)
        page.wait_for_model()
        page.click("key-toggle")
        use_key(page, "")
        page.wait_for_error("send the header Authorization")
        assert browser.run("return sessionStorage.length") == 0
        page.check_stayed_here()


def test_a_key_that_no_header_can_hold_is_refused(page: PlaygroundPage) -> None:
    page.click("key-toggle")
    page.set("key", "schlüssel")
    page.browser.find("#key-form button").click()
    page.wait_for_error("no letters outside ASCII")
    assert page.browser.run("return sessionStorage.length") == 0


@pytest.mark.parametrize(
    ("answer", "title", "message"),
    [
        (
            Answer(429, error("Too many requests are waiting"), {"retry-after": "7"}),
            "The server is busy",
            "Too many requests are waiting\nTry again in 7 s.",
        ),
        (
            Answer(503, error("The engine is draining"), {"retry-after": "5"}),
            "The server is not ready",
            "The engine is draining\nTry again in 5 s.",
        ),
        (Answer(502), "The request failed", "The server answered with status 502."),
        (
            Answer(400, {**error("must be smaller"), "param": "max_tokens"}),
            "The server refused the request because of max_tokens",
            "must be smaller",
        ),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
def test_shows_what_the_server_says(
    answer: Answer, title: str, message: str, page: PlaygroundPage, front: Gateway
) -> None:
    front.faults = Faults(answer=answer)
    page.generate()
    assert page.error == f"{title}\n{message}"
    front.faults = Faults()
    page.set("max-tokens", 8)
    page.generate()
    assert page.error == "" and len(page.tokens()) == 8


def test_a_full_queue_says_when_to_try_again(browser: Browser) -> None:
    engine = FakeAsyncEngine(hold_after=1, num_places=1)
    body = {"prompt": "x", "max_tokens": 8}
    with (
        live_server(engine, max_queued_requests=1) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        page = PlaygroundPage(browser, server.url)
        page.load()
        answers = [pool.submit(client.post, "/v1/completions", json=body) for _ in range(2)]
        wait_until(lambda: len(engine.submitted) == 2)
        page.generate()
        assert page.error.startswith("The server is busy\n")
        assert re.search(r"Try again in \d+ s\.$", page.error)
        server.call(engine.release)
        assert [answer.result(60).status_code for answer in answers] == [200, 200]
        page.generate()
        assert page.error == "" and page.tokens()
        page.check_stayed_here()


def test_waits_for_a_server_that_is_still_loading(browser: Browser) -> None:
    loading: Future[Engine] = Future()
    loading.set_running_or_notify_cancel()
    with live_server(loading=loading) as server:
        page = PlaygroundPage(browser, server.url)
        page.open()
        page.wait_for_error("The server is not ready")
        loading.set_result(server.engine)
        page.wait_for_model()
        assert page.error == ""
        page.check_stayed_here()


def test_a_request_that_the_server_ends_early(browser: Browser) -> None:
    engine = FakeAsyncEngine(hold_after=4)
    with live_server(engine) as server:
        page = PlaygroundPage(browser, server.url)
        page.load()
        page.click("generate")
        browser.wait_for("document.querySelectorAll('#output .token').length === 4")
        server.call(lambda: engine.fail("The server is shutting down", "shutting_down"))
        page.wait_until_idle()
        assert page.error.endswith("The server is shutting down")
        assert len(page.tokens()) == 4
        page.check_stayed_here()


def test_a_broken_stream_keeps_its_text(page: PlaygroundPage, front: Gateway) -> None:
    front.faults = Faults(num_bytes=2000)
    page.generate()
    assert page.error.endswith("The connection broke before the answer was complete.")
    assert page.tokens()


def test_a_comparison_that_fails_says_which_columns_are_not_finished(
    page: PlaygroundPage, front: Gateway
) -> None:
    front.faults = Faults(num_bytes=2000)
    page.click("compare")
    page.wait_until_idle()
    assert "connection broke" in page.error
    notes = page.browser.run(
        "return [...document.querySelectorAll('.column .quiet')].map((note) => note.textContent)"
    )
    assert notes == ["not finished"] * 5


def test_a_server_that_is_gone(browser: Browser, demo: ServedProcess) -> None:
    with gateway(demo.url) as front:
        page = PlaygroundPage(browser, front.url)
        page.load()
    page.generate()
    assert page.error.endswith("The server cannot be reached; it may have been stopped.")

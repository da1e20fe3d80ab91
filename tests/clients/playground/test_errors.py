"""What the page says, and does, when a request is not answered as asked."""

from __future__ import annotations

import pytest

from support.browser import Browser
from support.gateway import Answer, Faults, Gateway, gateway
from support.playground_page import PlaygroundPage
from support.served_process import ServedProcess

KEY = "sesame-1"


def error(message: str, code: str | None = None) -> dict[str, str | None]:
    return {"message": message, "type": "some_error", "param": None, "code": code}


def test_a_missing_key_is_asked_for_and_kept_in_the_tab_alone(
    page: PlaygroundPage, front: Gateway
) -> None:
    front.faults = Faults(api_key=KEY)
    browser = page.browser
    browser.open(page.url)
    page.wait_for_error("wants an API key")
    assert browser.run("return document.activeElement.id") == "key"
    page.set("key", "wrong")
    browser.find("#key-form button").click()
    page.wait_for_error("wants an API key")
    browser.wait_for("!document.getElementById('key-form').hidden")
    page.set("key", KEY)
    browser.find("#key-form button").click()
    browser.wait_for("!document.getElementById('exit').disabled")
    assert page.error == "" and not browser.find("#key-form").is_displayed()
    page.set("max-tokens", 8)
    page.generate()
    assert len(page.tokens()) == 8
    kept = browser.run(
        "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
    )
    assert kept == [[KEY], 0, ""]
    browser.open(page.url)
    browser.wait_for("!document.getElementById('exit').disabled")
    page.click("key-toggle")
    page.set("key", "")
    browser.find("#key-form button").click()
    page.wait_for_error("wants an API key")
    assert browser.run("return sessionStorage.length") == 0


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


def test_waits_for_a_server_that_is_still_loading(page: PlaygroundPage, front: Gateway) -> None:
    loading = Answer(503, error("The engine is loading", "loading"), {"retry-after": "1"})
    front.faults = Faults(answer=loading)
    page.browser.open(page.url)
    page.wait_for_error("The engine is loading")
    front.faults = Faults()
    page.browser.wait_for("!document.getElementById('exit').disabled")
    assert page.error == ""


def test_a_broken_stream_keeps_its_text(page: PlaygroundPage, front: Gateway) -> None:
    front.faults = Faults(num_bytes=2000)
    page.generate()
    assert page.error.endswith("The connection broke before the answer was complete.")
    assert page.tokens()


def test_an_error_within_a_stream(page: PlaygroundPage, front: Gateway) -> None:
    event = b'\n\ndata: {"error":{"message":"The server is shutting down"}}\n\ndata: [DONE]\n\n'
    front.faults = Faults(num_bytes=0, suffix=event)
    page.generate()
    assert page.error.endswith("The server is shutting down")


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

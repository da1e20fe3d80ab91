"""The playground in a real browser, before the demo model."""

from __future__ import annotations

from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from support.browser import Browser
from support.gateway import Faults, Gateway
from support.live_server import wait_until
from support.playground_page import SOURCES, PlaygroundPage
from support.served_process import ServedProcess, serving

CASES: dict[str, dict[str, Any]] = {
    "fixed drafts": {"num-drafts": 4},
    "from a chosen exit": {"num-drafts": 3, "draft-exit": 6},
    "from repetitions": {"num-drafts": 4, "method": "ngram"},
    "auto": {},
}


def whole_answer(demo: ServedProcess, front: Gateway) -> dict[str, Any]:
    """What the server says, not streaming, to the page's last request."""
    body = {name: value for name, value in front.posted[-1].items() if name != "stream_options"}
    return demo.complete(**{**body, "stream": False})


@pytest.mark.parametrize("case", CASES)
def test_paints_every_token_by_its_source(
    case: str, page: PlaygroundPage, front: Gateway, demo: ServedProcess
) -> None:
    page.set("seed", 7)
    page.set("max-tokens", 80)
    for control, value in CASES[case].items():
        page.set(control, value)
    page.generate()
    assert page.error == ""
    answer = whole_answer(demo, front)
    tokens = page.tokens()
    assert "".join(token.text for token in tokens) == answer["choices"][0]["text"]
    assert len(tokens) == answer["usage"]["completion_tokens"]
    counts = {name: sum(token.source == name for token in tokens) for name in SOURCES}
    assert page.counts() == counts
    if "num-drafts" not in CASES[case]:
        return  # How many drafts pay is measured anew each time.
    figures = answer["metrics"]["speculative_decoding"]
    assert counts["draft"] == figures["num_accepted_tokens"] > 0
    shares = [count / figures["num_drafts"] for count in figures["accepted_per_position"]]
    assert [width for _, width in page.bars()] == pytest.approx(shares, abs=0.02)
    assert [text for text, _ in page.bars()] == [
        f"{share:.0%}".replace("%", " %") for share in shares
    ]
    assert page.text("acceptance") == f"{figures['draft_acceptance_rate']:.0%}".replace("%", " %")
    assert page.text("num-tokens") == str(len(tokens))
    assert float(page.text("rate")) > 0 and page.text("first").endswith("s")


def test_without_speculation_the_text_is_the_same_and_plain(page: PlaygroundPage) -> None:
    page.set("seed", 7)
    page.set("num-drafts", 4)
    page.generate()
    drafted = page.tokens()
    page.click("speculative")
    page.generate()
    plain = page.tokens()
    assert [token.text for token in plain] == [token.text for token in drafted]
    assert {token.source for token in plain} == {"plain"}
    assert {token.source for token in drafted} > {"plain"}


def test_markup_is_text(page: PlaygroundPage, front: Gateway) -> None:
    prompt = '<script>window.hit = 1</script><img src=x onerror="window.hit = 1">&amp; said'
    page.set("prompt", prompt)
    page.set("max-tokens", 4)
    page.generate()
    assert page.browser.find("#output .prompt").text == prompt
    assert front.posted[-1]["prompt"] == prompt
    # The server's own words, with the client's in them, are text as well.
    front.faults = Faults(num_bytes=0, suffix=b'data: {"error":{"message":"<b>bold</b>"}}\n\n')
    page.generate()
    assert "<b>bold</b>" in page.error
    assert page.browser.run("return window.hit ?? null") is None
    assert page.browser.run("return document.querySelectorAll('main script, #error b').length") == 0


def test_the_slider_chooses_the_depth(page: PlaygroundPage, front: Gateway) -> None:
    assert page.text("exit-value") == "12 of 12 layers"
    page.browser.find("#exit").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.text("exit-value") == "10 of 12 layers"
    page.set("draft-exit", 9)
    ticks = page.browser.run(
        "return [...document.querySelectorAll('#exit-ticks button')].map((tick) => tick.value)"
    )
    assert ticks == ["3", "6", "9", "12"]
    page.browser.find("#exit-ticks button[value='6']").click()
    assert page.text("exit-value") == "6 of 12 layers"
    assert page.value("draft-exit") == "auto", "a draft exit below the answering depth"
    assert not page.browser.find("#draft-exit option[value='6']").is_enabled()
    page.set("draft-exit", 2)
    page.set("max-tokens", 16)
    page.generate()
    assert page.error == ""
    assert front.posted[-1]["exit_layer"] == 6
    assert front.posted[-1]["speculative"]["exit_layer"] == 2
    page.browser.find("#exit").send_keys(Keys.HOME)
    assert page.text("exit-value") == "1 of 12 layers"
    page.generate()
    assert page.error == "" and len(page.tokens()) == 16


def test_a_drawn_seed_can_be_kept(page: PlaygroundPage, front: Gateway) -> None:
    page.set("max-tokens", 24)
    page.generate()
    first = page.tokens()
    seed = front.posted[-1]["seed"]
    page.generate()
    assert front.posted[-1]["seed"] != seed
    page.set("seed", seed)
    page.generate()
    assert [token.text for token in page.tokens()] == [token.text for token in first]
    page.set("seed", 5)
    page.generate()
    page.set("seed", "")
    page.browser.find("#status button").click()
    assert page.value("seed") == "5"


def test_keys_alone(page: PlaygroundPage, front: Gateway) -> None:
    browser = page.browser
    browser.find("#prompt").click()
    page.set("prompt", "The cat")
    browser.press(Keys.CONTROL, Keys.ENTER)
    wait_until(lambda: front.posted)
    page.wait_until_idle()
    assert front.posted[-1]["prompt"] == "The cat" and page.tokens()
    browser.press(Keys.TAB)
    assert browser.run("return document.activeElement.id") == "generate"
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press(Keys.ENTER)
    wait_until(lambda: len(front.posted) == 2)
    page.wait_until_idle()
    assert browser.run("return document.activeElement.id") == "generate", "the focus stays"


def test_a_refused_value_is_not_sent(page: PlaygroundPage, front: Gateway) -> None:
    page.set("max-tokens", 0)
    page.click("generate")
    assert page.browser.run("return document.activeElement.id") == "max-tokens"
    assert front.posted == []


def test_text_survives_any_cut_of_the_stream(page: PlaygroundPage, front: Gateway) -> None:
    page.set("seed", 3)
    page.set("max-tokens", 12)
    page.set("prompt", "Ein Eulen-Märchen: 🦉")
    page.generate()
    whole = page.tokens()
    front.faults = Faults(piece_size=1)
    page.generate()
    assert [token.text for token in page.tokens()] == [token.text for token in whole]
    assert page.error == ""


def test_compares_exits_one_after_another(page: PlaygroundPage, front: Gateway) -> None:
    page.set("seed", 7)
    page.set("max-tokens", 40)
    page.set("num-drafts", 4)
    page.click("compare")
    page.wait_until_idle()
    assert page.text("status") == "Compared."
    bodies = front.posted
    assert [body["exit_layer"] for body in bodies] == [12, 12, 9, 6, 3]
    assert {(body["prompt"], body["seed"]) for body in bodies} == {("Once upon a time", 7)}
    assert [bool(body["speculative"]) for body in bodies] == [False, True, False, False, False]
    columns = page.browser.run(
        "return [...document.querySelectorAll('.column')].map((column) => ({"
        " text: column.querySelector('.text').textContent,"
        " note: column.querySelector('.quiet').textContent,"
        " figures: [...column.querySelectorAll('dd')].map((value) => value.textContent)}))"
    )
    assert len(columns) == 5
    assert columns[1]["text"] == columns[0]["text"]
    assert columns[1]["note"].endswith("the same as full depth")
    assert columns[0]["figures"][2] == "1.00 ×"
    rates = [float(column["figures"][1]) for column in columns]
    for column, rate in zip(columns, rates, strict=True):
        time, _, speed_up = column["figures"]
        assert time.endswith("s") and column["text"]
        assert float(speed_up.removesuffix(" ×")) == pytest.approx(rate / rates[0], rel=0.02)
    marked = page.browser.run("return document.querySelectorAll('.column .apart').length")
    assert marked == sum(column["text"] != columns[0]["text"] for column in columns)


def test_stop_ends_the_request_on_the_server(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On the slow backend, where a story takes seconds."""
    log = tmp_path_factory.mktemp("slow") / "log"
    with serving(None, log, "--backend", "reference") as slow:
        page = PlaygroundPage(browser, slow.url)
        page.load()
        page.set("seed", 7)
        page.set("max-tokens", 450)
        for stop in (lambda: page.click("stop"), lambda: browser.press(Keys.ESCAPE)):
            page.click("generate")
            browser.wait_for("document.querySelectorAll('#output .token').length > 3")
            assert slow.metric("bitskip_num_requests_running") == 1
            stop()
            page.wait_until_idle()
            assert page.text("status") == "Stopped."
            wait_until(lambda: slow.metric("bitskip_num_requests_running") == 0)
            assert 3 < len(page.tokens()) < 200
            assert page.error == ""
        aborted = slow.metric("bitskip_request_success_total", finished_reason="abort")
        assert aborted == 2
        page.check_stayed_here()

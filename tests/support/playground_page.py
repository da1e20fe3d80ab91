"""The playground as its users handle it."""

from __future__ import annotations

from dataclasses import dataclass

from selenium.webdriver.support.ui import Select

from support.browser import Browser

SOURCES = ("draft", "corrected", "bonus", "plain")


@dataclass(frozen=True)
class Painted:
    """A token in the page."""

    text: str
    source: str


class PlaygroundPage:
    """The page of one server, in one browser."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url

    def load(self) -> None:
        """Open the page anew and wait until it knows the model."""
        self.open()
        self.wait_for_model()

    def open(self) -> None:
        """Open the page anew, without what earlier tests left."""
        browser = self.browser
        browser.requested()
        browser.complaints()
        browser.open(self.url)
        browser.run("sessionStorage.clear()")
        browser.open(self.url)

    def wait_for_model(self) -> None:
        """Wait until the controls are fitted to the model."""
        self.browser.wait_for("!document.getElementById('exit').disabled")

    def set(self, control: str, value: object) -> None:
        """Type into a field, or choose of a list."""
        found = self.browser.find(f"#{control}")
        if found.tag_name == "select":
            Select(found).select_by_value(str(value))
        else:
            self.browser.type_into(f"#{control}", str(value))

    def click(self, name: str) -> None:
        """Click an element by its id."""
        self.browser.find(f"#{name}").click()

    def text(self, name: str) -> str:
        """The text of an element by its id, as it is in the document."""
        return self.browser.run("return document.getElementById(arguments[0]).textContent", name)

    def value(self, name: str) -> str:
        """The value of a control."""
        return self.browser.run("return document.getElementById(arguments[0]).value", name)

    def wait_until_idle(self) -> None:
        """Wait for the end of the run."""
        self.browser.wait_for(
            "document.getElementById('stop').getAttribute('aria-disabled') === 'true'"
        )

    def generate(self) -> None:
        """Click Generate, and wait for the end."""
        self.click("generate")
        self.wait_until_idle()

    @property
    def error(self) -> str:
        """The error that is shown, "" if there is none."""
        return self.browser.find("#error").text

    def wait_for_error(self, part: str) -> None:
        """Wait until an error is shown that holds `part`."""
        self.browser.wait_for(
            "document.getElementById('error').innerText.includes(arguments[0])", part
        )

    def tokens(self) -> list[Painted]:
        """The painted tokens, in order."""
        found = self.browser.run(
            "return [...document.querySelectorAll('#output .token')]"
            ".map((span) => [span.textContent, span.className])"
        )
        return [Painted(text, name.removeprefix("token ")) for text, name in found]

    def counts(self) -> dict[str, int]:
        """The legend's counts by source."""
        read = "return document.querySelector(`[data-count=${arguments[0]}]`).textContent"
        return {source: int(self.browser.run(read, source)) for source in SOURCES}

    def bars(self) -> list[tuple[str, float]]:
        """The bars of acceptance: what each says, and its width as a share of the whole."""
        found = self.browser.run(
            "return [...document.querySelectorAll('#positions li')].map((row) =>"
            " [row.lastChild.textContent, row.querySelector('.bar span')?.offsetWidth"
            " / row.querySelector('.bar')?.offsetWidth])"
        )
        return [(text, width) for text, width in found]

    def check_stayed_here(self) -> None:
        """Nothing was asked of, nor meant for, any other machine."""
        requested = self.browser.requested()
        assert requested
        elsewhere = [url for url in requested if not url.startswith(f"{self.url}/")]
        assert not elsewhere, elsewhere
        assert not self.browser.attempts, self.browser.attempts

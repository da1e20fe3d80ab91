"""A real Chromium without a window, kept from every address but this machine's own.

Whatever it tries to reach elsewhere, of a page or of its own accord, goes to a proxy that writes
the attempt down and refuses it.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from support.live_server import wait_until
from support.programs import program

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-features=AutofillServerCommunication,NetworkTimeServiceQuerying,PreconnectToSearch,"
    "PrewarmDefaultSearchEngine,Prewarm,OptimizationHints",
    # What has no switch of its own is sent to where nobody listens.
    "--gaia-url=http://127.0.0.1:9",
    "--component-updater=url-source=http://127.0.0.1:9/",
    "--hide-scrollbars",
)
_PREFERENCES = {
    "default_search_provider_data": {
        "template_url_data": {
            "short_name": "none",
            "keyword": "none",
            "url": "http://127.0.0.1:9/?{searchTerms}",
        }
    },
    "net.network_prediction_options": 2,
    "search.suggest_enabled": False,
}
PATIENCE_S = 60.0


class Trap(socketserver.ThreadingTCPServer):
    """A proxy that refuses, and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        self.attempts: list[str] = []
        super().__init__(("127.0.0.1", 0), _Refusal)

    @property
    def address(self) -> str:
        host, port = self.socket.getsockname()
        return f"http://{host}:{port}"


class _Refusal(socketserver.StreamRequestHandler):
    server: Trap  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        self.server.attempts.append(self.rfile.readline(4096).decode(errors="replace").strip())
        self.wfile.write(
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )


class Browser:
    """One tab."""

    def __init__(self, driver: webdriver.Chrome, trap: Trap) -> None:
        self.driver = driver
        self._trap = trap

    @property
    def attempts(self) -> list[str]:
        """The first lines of all requests that were meant for other machines."""
        return list(self._trap.attempts)

    def forget_attempts(self) -> None:
        """Begin `attempts` anew."""
        self._trap.attempts.clear()

    def open(self, url: str) -> None:
        """Load a page."""
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: object) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, script: str, *arguments: object) -> Any:
        """The value of a JavaScript expression, once it is true."""
        values: list[Any] = []

        def is_true() -> bool:
            try:
                values.append(self.run(f"return {script}", *arguments))
            except JavascriptException:
                return False
            return bool(values[-1])

        wait_until(is_true, PATIENCE_S)
        return values[-1]

    def press(self, *keys: str) -> None:
        """Press keys together, wherever the focus is."""
        chain = ActionChains(self.driver)
        for key in keys[:-1]:
            chain.key_down(key)
        chain.send_keys(keys[-1])
        for key in keys[:-1]:
            chain.key_up(key)
        chain.perform()

    def type_into(self, selector: str, text: str) -> None:
        """Replace a field's value, key by key."""
        self.find(selector).send_keys(Keys.CONTROL, "a")
        self.find(selector).send_keys(Keys.DELETE, text)

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def requested(self) -> list[str]:
        """The addresses that pages have asked for since the last call.

        The browser's own first page, of which the log tells late, does not count.
        """
        entries = [json.loads(entry["message"]) for entry in self.driver.get_log("performance")]
        messages = [entry["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
            and not message["params"]["documentURL"].startswith("chrome://")
        ]

    def complaints(self) -> list[str]:
        """The errors on the console since the last call."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]


@contextmanager
def _serving(trap: Trap) -> Iterator[Trap]:
    thread = threading.Thread(target=trap.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield trap
    finally:
        trap.shutdown()
        thread.join()
        trap.server_close()


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser for the length of a `with`; skips or fails where there is none."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium")
    service = Service(program("chromedriver", "chromium-driver"))
    with _serving(Trap()) as trap:
        for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--proxy-server={trap.address}"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", _PREFERENCES)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield Browser(driver, trap)
        finally:
            driver.quit()

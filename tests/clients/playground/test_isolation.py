"""The browser of these tests reaches nothing but this machine, and tells of every attempt."""

from __future__ import annotations

import pytest
from selenium.common.exceptions import WebDriverException

from support.browser import Browser


def test_an_attempt_to_leave_is_refused_and_noticed(browser: Browser) -> None:
    assert browser.attempts == []
    try:
        browser.open("http://elsewhere.invalid/page")
        with pytest.raises(WebDriverException):
            browser.open("https://elsewhere.invalid/")
        assert "GET http://elsewhere.invalid/page HTTP/1.1" in browser.attempts
        assert "CONNECT elsewhere.invalid:443 HTTP/1.1" in browser.attempts
    finally:
        browser.open("about:blank")
        browser.forget_attempts()

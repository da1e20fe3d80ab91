"""Light and dark, wide and narrow, and colours that everybody can tell apart."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.browser import Browser
from support.playground_page import SOURCES, PlaygroundPage

# Severity 1.0 of Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation
# of Color Vision Deficiency" (2009), on linear RGB.
EYES: dict[str, list[list[float]]] = {
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = [0.9505, 1.0, 1.089]
Colour = NDArray[np.float64]


def linear(css: str) -> Colour:
    """The linear RGB of a computed colour."""
    found = re.match(r"rgba?\(([\d.]+), ([\d.]+), ([\d.]+)", css)
    assert found, css
    value = np.array([float(part) for part in found.groups()]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: Colour) -> Colour:
    """CIE L*a*b* of linear RGB."""
    ratio = (np.array(TO_XYZ) @ np.clip(rgb, 0, 1)) / WHITE
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two colours."""
    light = sorted(float(np.array(TO_XYZ[1]) @ linear(css)) + 0.05 for css in (first, second))
    return light[1] / light[0]


def prefer(browser: Browser, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.command("Emulation.setEmulatedMedia", features=features)


@pytest.fixture
def schemed(page: PlaygroundPage) -> Iterator[PlaygroundPage]:
    """The page; its colour scheme is put back afterwards."""
    yield page
    prefer(page.browser, "light")


def style(page: PlaygroundPage, selector: str) -> dict[str, Any]:
    script = (
        "const style = getComputedStyle(document.querySelector(arguments[0]));"
        "return Object.fromEntries(['color', 'backgroundColor', 'textDecorationColor',"
        " 'textDecorationStyle', 'textDecorationLine'].map((name) => [name, style[name]]))"
    )
    return page.browser.run(script, selector)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours(scheme: str, schemed: PlaygroundPage) -> None:
    page = schemed
    prefer(page.browser, scheme)
    body = style(page, "body")
    assert (contrast(body["backgroundColor"], "rgb(255, 255, 255)") < 2) == (scheme == "light")
    surface = style(page, "#output")["backgroundColor"]
    assert contrast(style(page, "#figures-note")["color"], surface) >= 4.5
    assert contrast(style(page, "#model")["color"], body["backgroundColor"]) >= 4.5
    generate = style(page, "#generate")
    assert contrast(generate["color"], generate["backgroundColor"]) >= 4.5
    painted = {source: style(page, f".legend .token.{source}") for source in SOURCES}
    for source in ("draft", "corrected", "bonus"):
        tint, line = painted[source]["backgroundColor"], painted[source]["textDecorationColor"]
        assert contrast(painted[source]["color"], tint) >= 7
        assert contrast(line, tint) >= 3 and contrast(line, surface) >= 3
    lines = {(one["textDecorationLine"], one["textDecorationStyle"]) for one in painted.values()}
    assert len(lines) == len(SOURCES), "underlines alone tell the sources apart"
    for eyes, matrix in EYES.items():
        seen = {
            source: lab(np.array(matrix) @ linear(painted[source]["textDecorationColor"]))
            for source in ("draft", "corrected", "bonus")
        }
        for one, other in itertools.combinations(seen, 2):
            distance = float(np.linalg.norm(seen[one] - seen[other]))
            assert distance > 20, (eyes, one, other, distance)


@pytest.fixture
def phone(page: PlaygroundPage) -> Iterator[PlaygroundPage]:
    """The page at 360 × 740 pixels."""
    page.browser.command(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=740,
        deviceScaleFactor=2,
        mobile=True,
    )
    page.load()
    yield page
    page.browser.command("Emulation.clearDeviceMetricsOverride")


def test_fits_a_phone(phone: PlaygroundPage) -> None:
    phone.set("max-tokens", 60)
    phone.set("prompt", "Longword" * 30)
    phone.generate()
    phone.click("compare")
    phone.wait_until_idle()
    assert phone.error == ""
    assert phone.browser.run("return document.documentElement.scrollWidth") == 360
    cut = phone.browser.run(
        "return [...document.querySelectorAll('body *')].filter((one) => {"
        " const box = one.getBoundingClientRect();"
        " return box.width > 0 && (box.left < 0 || box.right > 360.5);"
        "}).map((one) => one.outerHTML.slice(0, 80))"
    )
    assert cut == []
    small = phone.browser.run(
        "return [...document.querySelectorAll('button, input, select, textarea, a, .chips label')]"
        ".filter((one) => one.offsetParent && one.type !== 'checkbox'"
        " && (one.offsetHeight < 24 || one.offsetWidth < 24)).map((one) => one.outerHTML)"
    )
    assert small == [], "targets of at least 24 pixels, as WCAG 2.2 asks"


def test_every_control_has_a_name(page: PlaygroundPage) -> None:
    tree = page.browser.command("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "spinbutton", "slider", "switch", "combobox", "checkbox", "link"}
    controls = [node for node in tree if node.get("role", {}).get("value") in roles]
    assert len(controls) > 20
    assert [node for node in controls if not node["name"]["value"]] == []
    live = page.browser.run(
        "return ['output', 'columns'].map((id) => document.getElementById(id).ariaLive)"
    )
    assert live == ["polite", "polite"]
    assert page.browser.find("#error").aria_role in ("alert", "generic", "none")


def test_the_console_stays_silent(page: PlaygroundPage) -> None:
    """No violation of the content security policy, no missing file, no error."""
    page.generate()
    assert page.browser.complaints() == []
    blocked = page.browser.run(
        "const script = document.createElement('script');"
        "script.textContent = 'window.ran = true'; document.body.append(script);"
        "return window.ran === undefined"
    )
    assert blocked, "inline scripts do not run"
    assert "Content Security Policy" in page.browser.complaints()[0]

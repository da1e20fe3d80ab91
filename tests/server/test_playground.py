"""The routes of the playground: which files, with which headers, and what they may hold."""

from __future__ import annotations

import re
from importlib import resources

import httpx
import pytest

from server.routes.playground import CONTENT_TYPES, PAGE, page_files

# What makes markup of text. The page builds nodes and sets their `textContent`.
FORBIDDEN = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "srcdoc")


def test_the_page(client: httpx.Client) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'self'"
    assert "frame-ancestors 'none'" in policy and "unsafe" not in " ".join(policy)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in response.headers


def test_everything_that_the_files_name_is_served(client: httpx.Client) -> None:
    named = set(re.findall(r'(?:href|src)="(static/[^"]+)"', client.get("/").text))
    assert len(named) == 3
    seen: set[str] = set()
    while named:
        path = named.pop()
        seen.add(path)
        response = client.get(f"/{path}")
        assert response.status_code == 200, path
        assert response.headers["content-type"] == CONTENT_TYPES[f".{path.rpartition('.')[2]}"]
        assert response.headers["content-security-policy"].startswith("default-src 'self'")
        imports = re.findall(r'from "\./([^"]+)"', response.text)
        named |= {f"static/{name}" for name in imports} - seen
    served = {f"static/{name}" for name in page_files() if name != PAGE}
    assert seen == served, "nothing is served that the page does not use"


def test_no_other_file_is_served(client: httpx.Client) -> None:
    folder = resources.files("clients") / "playground"
    others = [one.name for one in folder.iterdir() if one.name not in page_files()]
    for name in (*others, PAGE, "missing.mjs", "..%2f__init__.py", "%2e%2e/__init__.py", ""):
        response = client.get(f"/static/{name}")
        assert response.status_code == 404, name
        assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/", "/static/style.css"])
def test_browsers_ask_whether_a_file_has_changed(path: str, client: httpx.Client) -> None:
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    again = client.get(path, headers={"if-none-match": f'"other", {tag}'})
    assert again.status_code == 304 and again.content == b""
    assert again.headers["etag"] == tag
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200
    head = client.head(path)
    assert head.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == str(len(first.content))


@pytest.mark.parametrize("name", sorted(page_files()))
def test_files_name_nothing_elsewhere_and_make_no_markup(name: str) -> None:
    text = page_files()[name].body.decode()
    elsewhere = re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\"' ]*", text)
    assert [address for address in elsewhere if address != "http://www.w3.org/2000/svg"] == []
    assert [word for word in FORBIDDEN if word in text] == []
    if name == PAGE:
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", text)


def test_the_page_is_no_part_of_the_interface(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/" not in paths and "/static/{name}" not in paths

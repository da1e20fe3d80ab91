"""Who is answered: API keys, and web pages of other origins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from engine.errors import ConfigError
from server.app import create_app
from server.auth import key_hashes
from server.settings import ServerSettings, load_settings
from support.fake_async_engine import FakeAsyncEngine
from support.live_server import LiveServer, live_server
from support.sse import joined_text, parse_events

KEYS = ("correct-horse", "battery-staple", "clé-en-UTF-8")
OPEN = {"/", "/static/{name}", "/health", "/ping", "/metrics"}
PAGE = "https://page.example"
BODY = {"prompt": "hi", "max_tokens": 100}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[LiveServer]:
    """A server that wants a key, and lets one origin in."""
    with live_server(api_key=KEYS, allowed_origins=(PAGE,)) as server:
        yield server


@pytest.fixture(scope="module")
def client(guarded: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, timeout=30) as http:
        yield http


def flat(routes: Iterable[Any]) -> Iterator[Any]:
    """Routes, those of included routers too, which FastAPI keeps together."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from flat(router.routes)
        else:
            yield route


def routes() -> list[tuple[str, str]]:
    """(method, path) of everything that an application answers."""
    app = create_app(ServerSettings(), CollectorRegistry())
    found = [
        (method, route.path.replace("{name:path}", "tiny"))
        for route in flat(app.routes)
        for method in sorted(getattr(route, "methods", None) or ("GET",))
    ]
    assert {("POST", "/v1/completions"), ("GET", "/metrics"), ("POST", "/tokenize")} <= set(found)
    return found


@pytest.mark.parametrize(("method", "path"), routes())
def test_every_route_wants_a_key_or_is_meant_to_be_open(
    client: httpx.Client, method: str, path: str
) -> None:
    refused = client.request(method, path, json=BODY)
    if path in OPEN:
        assert refused.status_code != 401
        return
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert refused.headers["x-request-id"]
    for key in KEYS:
        headers = {b"authorization": b"Bearer " + key.encode()}
        answered = client.request(method, path, json=BODY, headers=headers)
        assert answered.status_code != 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": KEYS[0]},
        {"authorization": f"Basic {KEYS[0]}"},
        {"authorization": "Bearer"},
        bearer("wrong"),
        bearer(KEYS[0][:-1]),
        bearer(KEYS[0] + "x"),
        bearer(KEYS[0].upper()),
        bearer(f"{KEYS[0]},{KEYS[1]}"),
        {"x-api-key": KEYS[0]},
    ],
)
def test_what_is_no_key(client: httpx.Client, headers: dict[str, str]) -> None:
    response = client.post("/v1/completions", json=BODY, headers=headers)
    assert response.status_code == 401
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert all(key not in response.text for key in KEYS)


@pytest.mark.parametrize(
    "path", ["/v1/models/", "//v1/models", "/health/", "/health/../v1/models", "/ping%2F", "/x"]
)
def test_paths_that_resemble_open_ones_are_not(guarded: LiveServer, path: str) -> None:
    url = httpx.URL(guarded.url).copy_with(raw_path=path.encode())
    assert httpx.get(url).status_code == 401


def test_a_scheme_is_known_in_any_case(client: httpx.Client) -> None:
    headers = {"authorization": f"bearer  {KEYS[1]}"}
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_streams_with_a_key(client: httpx.Client, guarded: LiveServer) -> None:
    response = client.post("/v1/completions", json=BODY | {"stream": True}, headers=bearer(KEYS[0]))
    assert joined_text(parse_events(response.content)) == guarded.engine.text


def test_refusals_are_counted(client: httpx.Client) -> None:
    def count() -> float:
        lines = client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("bitskip_request_rejected_total")]
        return sum(float(line.split()[-1]) for line in found if "invalid_api_key" in line)

    before = count()
    assert client.get("/v1/models").status_code == 401
    assert count() == before + 1


def test_metrics_can_be_guarded_too() -> None:
    with live_server(api_key=("k",), protect_metrics=True) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/metrics", headers=bearer("k")).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_guarding_metrics_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="protect_metrics needs an API key"):
        create_app(ServerSettings(protect_metrics=True), CollectorRegistry())


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\n first \nsecond\n")
    settings = load_settings(api_key=["third,fourth"], api_key_file=str(file))
    assert len(key_hashes(settings)) == 4
    with live_server(api_key_file=str(file)) as server:
        statuses = [
            httpx.get(f"{server.url}/v1/models", headers=bearer(key)).status_code
            for key in ("first", "second", "# ours", "third")
        ]
    assert statuses == [200, 200, 401, 401]


@pytest.mark.parametrize("content", [None, "", "# only\n\n"])
def test_a_file_without_keys_opens_nothing(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"api_key_file: {file}"):
        key_hashes(ServerSettings(api_key_file=str(file)))


@pytest.mark.parametrize("given", [[""], [" , "], ","])
def test_a_key_that_expanded_to_nothing_is_no_open_server(given: Any) -> None:
    with pytest.raises(ConfigError, match="api_key: is empty"):
        load_settings(api_key=given)


def test_of_keys_only_hashes_are_kept() -> None:
    settings = load_settings(api_key=["once-seen"])
    assert settings.api_key == key_hashes(settings) == (hashlib.sha256(b"once-seen").digest(),)
    assert "once-seen" not in str(settings.model_dump()) and "api_key=" not in repr(settings)


def preflight(client: httpx.Client, origin: str, path: str = "/v1/completions") -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-request-id",
    }
    return client.options(path, headers=headers)


def test_a_page_may_ask_before_it_shows_its_key(client: httpx.Client) -> None:
    response = preflight(client, PAGE)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "POST" in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"].lower()
    for name in ("authorization", "content-type", "x-request-id"):
        assert name in allowed


def test_other_pages_are_not_let_in(client: httpx.Client) -> None:
    for origin in ("https://other.example", f"{PAGE}.evil.example", "null", "http://page.example"):
        assert preflight(client, origin).status_code == 400
        answer = client.get("/health", headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers


def test_a_page_can_read_answers_and_errors(guarded: LiveServer, client: httpx.Client) -> None:
    page = {"origin": PAGE}
    stream = client.post(
        "/v1/completions", json=BODY | {"stream": True}, headers=page | bearer(KEYS[0])
    )
    responses = {
        200: stream,
        401: client.post("/v1/completions", json=BODY, headers=page),
        404: client.get("/nowhere", headers=page | bearer(KEYS[0])),
        400: client.post("/v1/completions", json={}, headers=page | bearer(KEYS[0])),
    }
    for status, response in responses.items():
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == PAGE
        exposed = response.headers["access-control-expose-headers"].lower()
        assert "x-request-id" in exposed and "retry-after" in exposed


def test_a_page_can_read_that_something_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("secret")

    fake = FakeAsyncEngine()
    with live_server(fake, allowed_origins=("*",)) as server:
        monkeypatch.setattr(fake, "submit", explode)
        response = httpx.post(
            f"{server.url}/v1/completions", json=BODY, headers={"origin": "http://any.example"}
        )
    assert response.status_code == 500 and "secret" not in response.text
    assert response.headers["access-control-allow-origin"] == "*"


def test_by_default_no_page_is_let_in(server: LiveServer) -> None:
    with httpx.Client(base_url=server.url) as client:
        assert preflight(client, PAGE).status_code == 405
        answer = client.get("/health", headers={"origin": PAGE})
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    ["page.example", "https://page.example/", "https://page.example/a", "://x", "https://"],
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed_origins: .*is no origin"):
        load_settings(allowed_origins=[origin])

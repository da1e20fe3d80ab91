"""Models, health, load, version, and what a tokenizer is asked."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.context import system_fingerprint
from server.errors import unavailable
from server.version import package_version
from support.fake_async_engine import FakeAsyncEngine
from support.live_server import LiveServer


def test_models(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny", "tiny-alias"]
    first = listed["data"][0]
    assert first["object"] == "model"
    assert (first["max_model_len"], first["num_layers"]) == (512, 8)
    assert first["exit_layers"] == [2, 4, 6, 8]
    assert client.get("/v1/models/tiny").json() == first


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health(client: httpx.Client, path: str) -> None:
    assert client.get(path).json() == {"status": "ready"}
    assert client.head(path).status_code == 200


def test_each_status_has_its_own_code() -> None:
    codes = [unavailable(status).code for status in ("loading", "draining", "dead")]
    assert codes == ["loading", "shutting_down", "engine_dead"]


def test_version(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": package_version()}


def test_load_of_an_idle_server(client: httpx.Client) -> None:
    assert client.get("/load").json() == {
        "server_load": 0,
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "num_waiting_prompt_tokens": 0,
        "max_num_seqs": 256,
        "max_queued_requests": 1024,
    }


TEXT = "Grüße, 日本"


def test_tokens_of_a_text_and_back(client: httpx.Client) -> None:
    for length in (1, 2000):  # The longer one is handled by a thread.
        answer = client.post("/tokenize", json={"prompt": TEXT * length, "model": "tiny"}).json()
        tokens = list(TEXT.encode()) * length
        assert answer == {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": 512,
            "token_strs": None,
        }
        text = client.post("/detokenize", json={"tokens": tokens}).json()
        assert text == {"prompt": TEXT * length}


def test_names_of_tokens(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"prompt": "aü", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["a", "bytes:\\xc3", "bytes:\\xbc"]


def test_detokenize_keeps_special_tokens(client: httpx.Client) -> None:
    assert client.post("/detokenize", json={"tokens": [104, 256]}).json() == {
        "prompt": "h<|endoftext|>"
    }
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_special_tokens_are_added_unless_refused(server: LiveServer) -> None:
    seen: list[bool] = []
    tokenizer = server.engine.tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "encode", lambda _, add: seen.append(add) or [1])
        for extras in ({}, {"add_special_tokens": False}, {"add_special_tokens": None}):
            body = {"prompt": "x", **extras}
            assert httpx.post(f"{server.url}/tokenize", json=body).status_code == 200
    assert seen == [True, False, True]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": 1}, 400, "add_special_tokens"),
        ("/tokenize", {"prompt": "\ud800"}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user"}]}, 400, "messages"),
        ("/tokenize", {"prompt": "x", "model": "other"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "x"}, 400, "tokens"),
        ("/detokenize", {"tokens": [True]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [257]}, 400, "tokens"),
        ("/detokenize", {"tokens": [5], "model": "other"}, 404, "model"),
    ],
)
def test_bad_questions_about_tokens(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    response = client.post(path, content=json.dumps(body))
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


def test_facts_about_the_tokenizer(client: httpx.Client) -> None:
    assert client.get("/tokenizer_info").json() == {
        "tokenizer_class": "ByteTokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": None,
        "chat_template": None,
    }


@pytest.mark.parametrize("field", ["head_dtype", "linear_dtype", "kv_dtype", "backend_name"])
def test_what_changes_floats_changes_the_fingerprint(field: str) -> None:
    engine = FakeAsyncEngine()
    before = system_fingerprint(engine)
    assert system_fingerprint(FakeAsyncEngine()) == before
    setattr(engine, field, "other")
    assert system_fingerprint(engine) != before

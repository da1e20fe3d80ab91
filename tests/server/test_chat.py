"""POST /v1/chat/completions, answered whole and as a stream."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from engine.errors import ConfigError
from server.app import attach_engine, create_app
from server.settings import ServerSettings, load_settings
from support.answers import Answer, read_answer, stream_text
from support.fake_async_engine import DEFAULT_TEXT, EOS, ByteTokenizer, FakeAsyncEngine
from support.live_server import LiveServer, live_server

NUM_TOKENS = len(DEFAULT_TEXT.encode()) + 1  # EOS included
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}"
    "{{ 'a:' if add_generation_prompt }}"
)
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    engine = FakeAsyncEngine()
    engine.tokenizer = ByteTokenizer(TEMPLATE)
    with live_server(engine) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


def chat(client: httpx.Client, **body: Any) -> Answer:
    body = {"messages": MESSAGES, **body}
    return read_answer(client.post("/v1/chat/completions", content=json.dumps(body).encode()))


def last_prompt(server: LiveServer) -> str:
    return bytes(server.engine.submitted[-1][1]).decode()


def test_answers_in_openais_form(client: httpx.Client) -> None:
    answer = chat(client)
    assert answer.body["id"].startswith("chatcmpl-")
    assert answer.body["object"] == "chat.completion" and answer.body["model"] == "tiny"
    assert answer.body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": DEFAULT_TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert answer.body["usage"]["completion_tokens"] == NUM_TOKENS
    assert answer.body["usage"]["prompt_tokens"] == len("u:hi|a:")


def test_the_engine_gets_what_the_template_makes(server: LiveServer, client: httpx.Client) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "On"},
    ]
    expectations: list[tuple[dict[str, Any], str]] = [
        ({}, "s:Be brief.|u:one\ntwo|a:On|a:"),
        ({"add_generation_prompt": False}, "s:Be brief.|u:one\ntwo|a:On|"),
        ({"continue_final_message": True}, "s:Be brief.|u:one\ntwo|a:On"),
        ({"truncate_prompt_tokens": 5}, "On|a:"),
    ]
    for options, prompt in expectations:
        assert chat(client, messages=messages, **options).status == 200
        assert last_prompt(server) == prompt


def test_the_role_comes_with_the_first_content_alone(client: httpx.Client) -> None:
    streamed = chat(client, stream=True, n=2, stream_options={"include_usage": True})
    for index in range(2):
        choices = [e["choices"][0] for e in streamed.events[:-1]]
        deltas = [choice["delta"] for choice in choices if choice["index"] == index]
        assert set(deltas[0]) == {"role", "content"} and deltas[0]["content"]
        assert all(set(delta) == {"content"} for delta in deltas[1:])
    whole = chat(client, n=2)
    for index in range(2):
        text = whole.body["choices"][index]["message"]["content"]
        assert stream_text(streamed.events, index) == text
    assert streamed.events[-1]["choices"] == []
    assert streamed.events[-1]["usage"] == whole.body["usage"]


def test_an_answer_without_text_has_a_role_too() -> None:
    engine = FakeAsyncEngine("")
    engine.tokenizer = ByteTokenizer(TEMPLATE)
    with live_server(engine) as server, httpx.Client(base_url=server.url) as client:
        (event,) = chat(client, stream=True).events
        assert event["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert event["choices"][0]["finish_reason"] == "stop"
        assert chat(client).choice["message"]["content"] == ""


def test_logprobs_in_the_shape_of_chats(client: httpx.Client) -> None:
    whole = chat(client, logprobs=True, top_logprobs=2)
    content = whole.choice["logprobs"]["content"]
    assert len(content) == NUM_TOKENS and whole.choice["logprobs"]["refusal"] is None
    spelt = bytes(byte for entry in content[:-1] for byte in entry["bytes"])
    assert spelt.decode() == DEFAULT_TEXT
    assert content[-1]["token"] == "<|endoftext|>"
    # Exactly the likeliest, whether or not the chosen token is among them.
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert content[2]["token"] == "bytes:\\xc3" and content[2]["bytes"] == [0xC3]
    impossible = next(entry for entry in content if entry["token"] == "a")
    assert impossible["logprob"] == -9999.0
    streamed = chat(client, logprobs=True, top_logprobs=2, stream=True)
    parts = [event["choices"][0]["logprobs"]["content"] for event in streamed.events]
    assert [entry for part in parts for entry in part] == content
    alone = chat(client, logprobs=True).choice["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in alone)


def test_what_only_we_have(client: httpx.Client) -> None:
    extras = {"return_metrics": True, "return_token_sources": True, "return_token_ids": True}
    answer = chat(client, seed=40, exit_layer=6, speculative={"exit_layer": 2}, **extras)
    assert answer.body["metrics"] == answer.choice["metrics"]
    assert answer.body["metrics"]["exit_layer"] == 6 and answer.body["metrics"]["seed"] == 40
    assert answer.body["prompt_token_ids"] == list(b"u:hi|a:")
    assert answer.choice["token_ids"] == [*DEFAULT_TEXT.encode(), EOS]
    assert "".join(token["text"] for token in answer.choice["token_sources"]) == DEFAULT_TEXT
    events = chat(client, stream=True, n=2, **extras).events
    assert sum("prompt_token_ids" in event for event in events) == 1
    assert events[0]["prompt_token_ids"] == list(b"u:hi|a:")
    assert sum("metrics" in event for event in events) == 2


def test_prompt_scores_stand_beside_the_choices(client: httpx.Client) -> None:
    answer = chat(client, prompt_logprobs=1, n=2)
    first, second, *_ = answer.body["prompt_logprobs"]
    assert first is None and set(second) == {str(ord(":")), "65"}
    assert second[str(ord(":"))]["decoded_token"] == ":"
    assert all("prompt_logprobs" not in choice for choice in answer.body["choices"])


def test_echo_is_the_final_message_where_its_speaker_goes_on(client: httpx.Client) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "On"}]
    for options in ({}, {"continue_final_message": True}):
        answer = chat(client, messages=messages, echo=True, **options)
        assert answer.text == "On" + DEFAULT_TEXT
        assert answer.body["usage"]["completion_tokens"] == NUM_TOKENS
    assert chat(client, echo=True).text == DEFAULT_TEXT
    # Without the beginning of an answer, the user goes on.
    answer = chat(client, echo=True, add_generation_prompt=False)
    assert answer.choice["message"] == {
        "role": "user",
        "content": "hi" + DEFAULT_TEXT,
        "refusal": None,
    }


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_goes_by_the_name_that_was_used(client: httpx.Client, name: str) -> None:
    assert chat(client, **{name: 3}).num_tokens == 3
    assert chat(client, **{name: None}).num_tokens == NUM_TOKENS
    answer = chat(client, **{name: -1})
    assert answer.error["param"] == name and answer.error["message"].startswith(name)
    answer = chat(client, **{name: 3, "min_tokens": 4})
    assert answer.error["param"] == "min_tokens"


def test_contradictions_are_refused(client: httpx.Client) -> None:
    for body, param in (
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ):
        assert chat(client, **body).error["param"] == param
    assert chat(client, max_tokens=3, max_completion_tokens=3).num_tokens == 3


def test_request_ids_need_not_be_unique(server: LiveServer, client: httpx.Client) -> None:
    answers = [chat(client, request_id="mine") for _ in range(2)]
    assert [answer.body["id"] for answer in answers] == ["chatcmpl-mine"] * 2
    ours = [item[0] for item in server.engine.submitted[-2:]]
    assert len(set(ours)) == 2


def test_too_long_a_conversation_names_the_messages(client: httpx.Client) -> None:
    answer = chat(client, messages=[{"role": "user", "content": "x" * 600}])
    assert answer.error["param"] == "messages"
    assert answer.error["code"] == "context_length_exceeded"


def test_unknown_fields_of_messages_are_named(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [{**MESSAGES[0], "mood": "good", "tool_calls": None}]
    with caplog.at_level(logging.WARNING, "server"):
        assert chat(client, messages=messages, frobnicate=1).status == 200
    (warning,) = [r.getMessage() for r in caplog.records if "unknown" in r.getMessage()]
    assert "messages.mood" in warning and "frobnicate" in warning


def test_long_conversations_are_rendered_off_the_loop(
    server: LiveServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def recording(text: str, add_special_tokens: bool = True) -> list[int]:
        threads.append(threading.current_thread().name)
        return [1, 2, 3]

    monkeypatch.setattr(server.engine.tokenizer, "encode", recording)
    for content in ("short", "long" * 10_000):
        assert chat(client, messages=[{"role": "user", "content": content}]).status == 200
    loop_thread = server.call(lambda: threading.current_thread().name)
    assert threads[0] == loop_thread and threads[1] != loop_thread


# --- where templates come from ---------------------------------------------------------------


def test_without_a_template_chat_is_refused_and_says_so() -> None:
    with live_server() as server, httpx.Client(base_url=server.url) as client:
        error = chat(client).error
        assert error["param"] == "messages" and "--chat-template" in error["message"]
        text = client.post("/v1/completions", json={"prompt": "hi"})
        assert text.status_code == 200


def test_a_template_of_the_settings_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ bos_token }}mine:{{ messages[0].content }}\n", encoding="utf-8")
    engine = FakeAsyncEngine()
    engine.tokenizer = ByteTokenizer(TEMPLATE)
    with (
        live_server(engine, chat_template=file) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert chat(client).status == 200
        assert last_prompt(server) == "<|endoftext|>mine:hi"


def test_a_template_in_the_request_is_refused(client: httpx.Client) -> None:
    answer = chat(client, chat_template="{{ messages }}")
    assert answer.error["message"] == "chat_template is not supported"


def serve_with(template: Path) -> None:
    app = create_app(ServerSettings(chat_template=template), CollectorRegistry())
    attach_engine(app, FakeAsyncEngine())


def test_a_broken_template_keeps_the_server_from_starting(tmp_path: Path) -> None:
    file = tmp_path / "broken.jinja"
    file.write_text("{% for %}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken.jinja is not a usable Jinja template"):
        serve_with(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"broken.jinja cannot be read"):
        serve_with(file)
    with pytest.raises(ConfigError, match="chat_template"):
        load_settings(chat_template=str(tmp_path / "missing.jinja"))

"""Streams to the byte: wherever a network cuts one, the same events; joined, the whole answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
from openai._streaming import SSEDecoder

from support.answers import choice_text, read_answer, stream_text
from support.fake_async_engine import ByteTokenizer, FakeAsyncEngine
from support.fields import ROUTES, Route
from support.live_server import live_server
from support.served_process import ServedProcess

EMOJI = "👩‍👧 says: 日本語、€5 – 🇩🇪!"
"""Characters of up to 18 bytes as a reader sees them, of up to 4 as Unicode does."""
ALPHABET = sorted(set("😀日é€a ".encode()))
"""Bytes of which characters of every length can be made, and what is no character."""

every_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)


def events_of(pieces: Iterable[bytes]) -> list[tuple[str | None, str]]:
    """The events that OpenAI's own decoder finds in a stream that comes in these pieces."""
    return [(event.event, event.data) for event in SSEDecoder().iter_bytes(iter(pieces))]


def prompt_of(route: Route, text: str) -> dict[str, Any]:
    if route.name == "chat":
        return {"messages": [{"role": "user", "content": text}]}
    return {"prompt": text}


def stream_bytes(http: httpx.Client, route: Route, body: dict[str, Any]) -> bytes:
    response = http.post(route.path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    return response.content


@pytest.fixture(scope="module")
def emoji_server() -> Iterator[httpx.Client]:
    """Answers with the emoji text, a byte a token, one to three tokens a step."""
    engine = FakeAsyncEngine(EMOJI)
    engine.tokenizer = ByteTokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    with live_server(engine) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


@every_route
@pytest.mark.parametrize("extras", [{}, {"n": 2, "logprobs": 1, "return_token_ids": True}])
def test_a_stream_cut_anywhere_has_the_same_events(
    emoji_server: httpx.Client, route: Route, extras: dict[str, Any]
) -> None:
    if route.name == "chat" and extras:
        extras = extras | {"logprobs": True, "top_logprobs": 1}
    usage = {"stream_options": {"include_usage": True}}
    length = 8 if extras else 30
    body = {**prompt_of(route, EMOJI), "max_tokens": length, **usage, **extras}
    content = stream_bytes(emoji_server, route, body)
    whole = events_of([content])
    assert whole[-1] == (None, "[DONE]") and len(whole) > 5
    assert events_of(bytes([byte]) for byte in content) == whole
    # What comes before a cut never changes by what comes after, so nearby frames are enough.
    for cut in range(len(content) + 1):
        start = max(0, content.rfind(b"\n\n", 0, max(0, cut - 2)) + 2) if cut > 2 else 0
        end = content.find(b"\n\n", cut)
        end = len(content) if end < 0 else end + 2
        expected = events_of([content[start:end]])
        assert events_of([content[start:cut], content[cut:end]]) == expected, cut
    for size in (2, 3, 7, 61, 1000):
        pieces = [content[i : i + size] for i in range(0, len(content), size)]
        assert events_of(pieces) == whole, size
    assert not [line for line in content.decode().splitlines() if line and line[:6] != "data: "]
    assert all(json.loads(data) for _, data in whole[:-1])


@every_route
@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"n": 3},
        {"max_tokens": 2},
        {"max_tokens": 11},
        {"echo": True},
        {"stop": ["日本"]},
        {"stop": "語、€", "include_stop_str_in_output": True},
        {"stop": ["!", "🇩🇪"], "n": 2},
    ],
    ids=json.dumps,
)
def test_streamed_emoji_are_whole(
    emoji_server: httpx.Client, route: Route, extras: dict[str, Any]
) -> None:
    body = {**prompt_of(route, EMOJI), "max_tokens": 100, **extras}
    whole = read_answer(emoji_server.post(route.path, json=body))
    streamed = read_answer(emoji_server.post(route.path, json={**body, "stream": True}))
    for choice in whole.body["choices"]:
        assert stream_text(streamed.events, choice["index"]) == choice_text(choice)
        pieces = [
            choice_text(piece)
            for event in streamed.events
            for piece in event["choices"]
            if piece["index"] == choice["index"]
        ]
        # Only an answer that was cut inside a character may hold what stands for none.
        assert "\ufffd" not in "".join(pieces[:-1])
        assert all(pieces[:-1])


@every_route
@pytest.mark.parametrize("prompt", ["Once upon a time", EMOJI, "日本語の猫", "\u2028\x85\r\n"])
@pytest.mark.parametrize("drafting", [False, {"exit_layer": 2, "num_speculations": 5}])
def test_the_real_engine_streams_what_it_answers(
    chatty: ServedProcess, route: Route, prompt: str, drafting: Any
) -> None:
    """Random bytes of long characters, which mostly fail to become any."""
    base = {
        **prompt_of(route, prompt),
        "seed": len(prompt),
        "max_tokens": 24,
        "ignore_eos": True,
        "return_token_ids": True,
        "speculative": drafting,
    }
    tokens = byte_tokens(chatty)
    restrictions = ({}, {"allowed_token_ids": tokens}, {"temperature": 0, "echo": True})
    for restriction, n in itertools.product(restrictions, (1, 2)):
        body = {**base, **restriction, "n": n}
        whole = read_answer(chatty.http.post(route.path, json=body))
        compare_with_stream(chatty, route, body, whole.body["choices"])
        # A stop string that, for bytes, begins in one token and ends in another.
        stop = whole.text[-6:-3]
        stopped = read_answer(chatty.http.post(route.path, json={**body, "stop": [stop]}))
        assert stopped.choice["finish_reason"] == "stop"
        compare_with_stream(chatty, route, {**body, "stop": [stop]}, stopped.body["choices"])


def byte_tokens(served: ServedProcess) -> list[int]:
    """The ids of the alphabet's bytes in the model's tokenizer, which has them one by one."""
    body = {"prompt": "😀日é€a ", "max_tokens": 1, "return_token_ids": True}
    answer = read_answer(served.http.post("/v1/completions", json=body))
    ids = sorted({token for token in answer.prompt_ids if token < 256})
    assert len(ids) == len(ALPHABET)
    return ids


def compare_with_stream(
    served: ServedProcess, route: Route, body: dict[str, Any], choices: list[dict[str, Any]]
) -> None:
    streamed = read_answer(served.http.post(route.path, json={**body, "stream": True}))
    for choice in choices:
        assert stream_text(streamed.events, choice["index"]) == choice_text(choice), body
        pieces = [event["choices"][0] for event in streamed.events]
        mine = [piece for piece in pieces if piece["index"] == choice["index"]]
        assert [token for piece in mine for token in piece["token_ids"]] == choice["token_ids"]

"""Server-sent events, however the network cuts them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from clients import calls
from clients.calls import EventReader
from clients.errors import (
    ProtocolError,
    ResponseTimeoutError,
    ServerConnectionError,
    StreamInterruptedError,
)
from clients.streams import Stream
from support.client_drivers import Connect
from support.scripted_server import DONE, event, event_stream, scripted_server, text_chunk

# Line breaks to Python and to JavaScript, but none to server-sent events; escaped by our server,
# and raw here, as other servers send them.
ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg 日本 🎉"


def _raw(chunk: dict[str, object]) -> bytes:
    return json.dumps(chunk, ensure_ascii=False).encode()


STREAM = b"".join(
    [
        b"\xef\xbb\xbf: a comment\n\n",
        b"data: " + _raw(text_chunk(ODD)) + b"\n\n",
        b": ping\r\n\r\n",
        b"data:" + _raw(text_chunk("no space")) + b"\r\n\r\n",
        b"event: message\rid: 1\rretry: 10\rdata: " + _raw(text_chunk("CR")) + b"\r\r",
        b'data: {"id":"x",\ndata: "created":1,"model":"m",\n',
        b'data: "choices":[{"index":0,"text":"lines"}]}\n\n',
        b"unknown: field\ndata: [DONE]\n\n",
    ]
)
TEXTS = [ODD, "no space", "CR", "lines"]


class Parts(httpx.SyncByteStream):
    """A body that arrives in these parts."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts


def texts_of(*parts: bytes) -> list[str]:
    response = httpx.Response(
        200,
        headers={"content-type": "text/event-stream"},
        stream=Parts(*parts),
        request=httpx.Request("POST", "http://x"),
    )
    reader = EventReader(calls.stream("hello", {}), response)
    return [chunk.text for chunk in Stream(reader, "http://x")]


def test_a_stream_cut_at_every_byte() -> None:
    assert texts_of(STREAM) == TEXTS
    for cut in range(len(STREAM) + 1):
        assert texts_of(STREAM[:cut], STREAM[cut:]) == TEXTS, cut


def test_a_stream_byte_by_byte(connect: Connect) -> None:
    parts = [STREAM[place : place + 1] for place in range(len(STREAM))]
    assert texts_of(*parts) == TEXTS
    with scripted_server(event_stream(*parts)) as scripted:
        chunks, _ = connect(scripted.url).stream("stream", "hello")
    assert [chunk.text for chunk in chunks] == TEXTS


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_connection_that_breaks(connect: Connect, ending: str) -> None:
    broken = event_stream(event(text_chunk("a")), complete=False, ending=ending)
    with scripted_server(broken, broken) as scripted:
        with pytest.raises(StreamInterruptedError):
            connect(scripted.url).stream("stream", "hello")
        assert len(scripted.received) == 1, "half an answer must not be asked for again"


def test_a_stream_without_an_end(connect: Connect) -> None:
    with (
        scripted_server(event_stream(event(text_chunk("a")))) as scripted,
        pytest.raises(StreamInterruptedError),
    ):
        connect(scripted.url).stream("stream", "hello")


def test_a_stream_that_breaks_before_its_first_event_is_asked_for_again(connect: Connect) -> None:
    nothing = event_stream(complete=False)
    half = event_stream(event(text_chunk("a"))[:10], complete=False)
    whole = event_stream(event(text_chunk("a")), DONE)
    with scripted_server(nothing, half, whole) as scripted:
        chunks, _ = connect(scripted.url).stream("stream", "hello")
        assert [chunk.text for chunk in chunks] == ["a"]
        assert len(scripted.received) == 3


def test_a_stream_that_never_begins(connect: Connect) -> None:
    empty = event_stream()
    with scripted_server(empty, empty, empty) as scripted:
        with pytest.raises(ServerConnectionError) as raised:
            connect(scripted.url).stream("stream", "hello")
        assert not isinstance(raised.value, StreamInterruptedError)
        assert len(scripted.received) == 3


def test_a_server_that_falls_silent(connect: Connect) -> None:
    silent = event_stream(event(text_chunk("a")), delay_s=20.0)
    with scripted_server(silent, silent, silent) as scripted:
        driver = connect(scripted.url)
        for method in ("stream", "stream_chat"):
            with pytest.raises(ResponseTimeoutError):
                driver.stream(method, "hello", timeout_s=0.05)
        with pytest.raises(ResponseTimeoutError):
            driver.call("complete", "hello", timeout_s=0.05)


def test_nonsense_after_a_good_beginning(connect: Connect) -> None:
    with (
        scripted_server(event_stream(event(text_chunk("a")), b"data: 5\n\n", DONE)) as scripted,
        pytest.raises(ProtocolError),
    ):
        connect(scripted.url).stream("stream", "hello")

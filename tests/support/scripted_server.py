"""A small HTTP server that does what a script says, however badly.

Each connection carries one request and gets the next reply of the script.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from support.live_server import PATIENCE_S


@dataclass(frozen=True)
class Reply:
    """What is written to one connection, part by part, and how it ends."""

    parts: Sequence[bytes] = ()
    ending: Literal["close", "reset"] = "close"
    gate: threading.Event | None = None
    """Wait for this before the first part."""
    delay_s: float = 0.0
    """And so long."""


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    at_s: float
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


def chunked(*parts: bytes) -> list[bytes]:
    """Parts of a body in HTTP's chunked coding, with its end."""
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]


def head(status: int, **headers: str) -> bytes:
    """Status line and headers; `_` in a name stands for `-`."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(status: int, body: object, **headers: str) -> Reply:
    """A whole JSON answer."""
    data = json.dumps(body).encode()
    return Reply(
        [
            head(status, Content_Type="application/json", Content_Length=str(len(data)), **headers),
            data,
        ]
    )


def refusal(status: int, code: str | None = None, **headers: str) -> Reply:
    """An error answer of our shape."""
    error = {"message": f"status {status}", "type": "t", "param": None, "code": code}
    return answer(status, {"error": error}, **headers)


def event_stream(*parts: bytes, complete: bool = True, **options: Any) -> Reply:
    """A stream of server-sent events, each part in a chunk of its own."""
    body = chunked(*parts)
    begin = head(200, Content_Type="text/event-stream", Transfer_Encoding="chunked")
    return Reply([begin, *(body if complete else body[:-1])], **options)


def event(value: object) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def envelope(**fields: Any) -> dict[str, Any]:
    """A completion or a chunk without choices."""
    return {"id": "x-1", "object": "o", "created": 1, "model": "m", "choices": [], **fields}


def text_chunk(text: str, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk of a streamed completion."""
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, **fields}
    return envelope(choices=[choice])


@dataclass
class ScriptedServer:
    """Plays its replies, one connection each; more connections than replies are closed."""

    replies: Sequence[Reply]
    uds: str | None = None
    """Path of a Unix socket to listen on in place of a port."""
    received: list[Received] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        if self.uds is None:
            self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
            self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        else:
            self._socket = socket.create_server(self.uds, family=socket.AF_UNIX)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if self.uds is None:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = _read_request(connection)
            if request is None:
                return
            with self._lock:
                number = len(self.received)
                self.received.append(request)
            if number >= len(self.replies):
                return
            reply = self.replies[number]
            if reply.gate is not None:
                assert reply.gate.wait(PATIENCE_S)
            self._closing.wait(reply.delay_s)
            for part in reply.parts:
                connection.sendall(part)
            if reply.ending == "reset":
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def close(self) -> None:
        """Stop listening and wait for every connection's end."""
        self._closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in [self._accepting, *self._threads]:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def _read_request(connection: socket.socket) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
    raw_head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = raw_head.decode().split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    method, path, _ = first.split(" ")
    return Received(time.monotonic(), method, path, headers, json.loads(body) if body else None)


@contextmanager
def scripted_server(*replies: Reply, uds: str | None = None) -> Iterator[ScriptedServer]:
    """A server for the length of a `with`."""
    server = ScriptedServer(replies, uds)
    try:
        yield server
    finally:
        server.close()

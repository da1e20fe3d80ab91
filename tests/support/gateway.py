"""A reverse proxy that misbehaves as it is told, between a browser and a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


@dataclass
class Answer:
    """What the gateway answers of its own."""

    status: int
    error: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Faults:
    """What goes wrong with requests under /v1; nothing, unless set."""

    answer: Answer | None = None
    """Answered in the server's place."""
    num_bytes: int | None = None
    """Of a completion's answer, after which the connection ends."""
    piece_size: int | None = None
    """Bytes that are sent at a time."""
    suffix: bytes = b""
    """Sent in place of the rest after `num_bytes`."""


class Gateway(ThreadingHTTPServer):
    """Forwards to `upstream`, and remembers the bodies that were posted."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.faults = Faults()
        self.posted: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        """Its own address."""
        host, port = self.socket.getsockname()
        return f"http://{host}:{port}"


class _Handler(BaseHTTPRequestHandler):
    server: Gateway  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._forward(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.posted.append(json.loads(body))
        self._forward(body)

    def _forward(self, body: bytes) -> None:
        faults = self.server.faults
        if self.path.startswith("/v1") and faults.answer is not None:
            self._answer(faults.answer)
            return
        headers = {"content-type": self.headers.get("content-type", "")}
        try:
            with httpx.stream(
                self.command,
                self.server.upstream + self.path,
                content=body,
                headers=headers,
                timeout=60,
            ) as response:
                self.send_response(response.status_code)
                for name, value in response.headers.items():
                    if name not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                self._pass_on(response, faults if self.command == "POST" else Faults())
        except (BrokenPipeError, ConnectionResetError):
            pass  # The browser has left; leaving the `with` tells the server.

    def _pass_on(self, response: httpx.Response, faults: Faults) -> None:
        left = faults.num_bytes
        for piece in response.iter_raw(faults.piece_size):
            self.wfile.write(piece if left is None else piece[:left])
            self.wfile.flush()
            if left is not None:
                left -= len(piece)
                if left <= 0:
                    self.wfile.write(faults.suffix)
                    return

    def _answer(self, answer: Answer) -> None:
        body = json.dumps({"error": answer.error}).encode() if answer.error else b"<p>Bad</p>"
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def gateway(upstream: str) -> Iterator[Gateway]:
    """A gateway for the length of a `with`."""
    server = Gateway(upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

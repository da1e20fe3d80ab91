"""Servers as their users start them, and streams that are timed as their users see them."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Protocol

PATIENCE_S = 180.0
POLL_S = 0.005
_PREFIX = b"data: "


@dataclass(slots=True)
class Stream:
    """One streamed completion: when its events came, and what they said."""

    arrivals_s: list[float] = field(default_factory=list)
    """On the clock of `time.perf_counter`."""
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Count:
    """What a finished stream says of itself."""

    tokens: int
    drafted: int
    accepted: int


class Dialect(Protocol):
    """How a server is asked for a greedy completion of exactly so many tokens."""

    @property
    def path(self) -> str:
        """Of the endpoint."""
        ...

    def body(self, prompt: str | Sequence[int], tokens: int) -> dict[str, Any]:
        """The request's JSON."""
        ...

    def count(self, events: Sequence[Mapping[str, Any]]) -> Count:
        """Tokens and drafts of a finished stream."""
        ...


@dataclass(frozen=True, slots=True)
class BitSkipDialect:
    """Our endpoint; `speculative` is the request's field of that name."""

    speculative: bool | dict[str, Any]
    path: str = "/v1/completions"

    def body(self, prompt: str | Sequence[int], tokens: int) -> dict[str, Any]:
        """A streamed request with its own metrics."""
        return {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_metrics": True,
            "speculative": self.speculative,
        }

    def count(self, events: Sequence[Mapping[str, Any]]) -> Count:
        """From the usage and the metrics that came last."""
        (usage,) = [event["usage"] for event in events if event.get("usage")]
        (metrics,) = [event["metrics"] for event in events if event.get("metrics")]
        drafts = metrics["speculative_decoding"] or {}
        return Count(
            usage["completion_tokens"],
            drafts.get("num_draft_tokens", 0),
            drafts.get("num_accepted_tokens", 0),
        )


@dataclass(frozen=True, slots=True)
class LlamaDialect:
    """llama.cpp's own endpoint, which is leaner than its OpenAI-style one."""

    path: str = "/completion"

    def body(self, prompt: str | Sequence[int], tokens: int) -> dict[str, Any]:
        """A streamed request; only temperature samples, and 0 of it is greedy."""
        return {
            "prompt": prompt,
            "n_predict": tokens,
            "temperature": 0,
            "samplers": ["temperature"],
            "ignore_eos": True,
            "stream": True,
            "cache_prompt": False,
        }

    def count(self, events: Sequence[Mapping[str, Any]]) -> Count:
        """From the timings in the last event."""
        timings = events[-1]["timings"]
        return Count(
            timings["predicted_n"], timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)
        )


class Server:
    """A server process on a port of 127.0.0.1; a context manager."""

    def __init__(
        self, command: Sequence[str | Path], port: int, log: Path, environment: dict[str, str]
    ) -> None:
        self.port = port
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.started_s = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )

    @property
    def pid(self) -> int:
        """The process to watch."""
        return self._process.pid

    def wait_for_stream(self, dialect: Dialect, prompt: str | Sequence[int], tokens: int) -> Stream:
        """Ask until the server answers; the first completion that it streams.

        Raises `TimeoutError`, or `RuntimeError` if the server ends or refuses.
        """
        deadline = time.perf_counter() + PATIENCE_S
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended; see {self._log}")
            try:
                stream = _stream(self.port, dialect, prompt, tokens)
            except (ConnectionError, TimeoutError):
                stream = None
            if stream is not None:
                return stream
            time.sleep(POLL_S)
        raise TimeoutError(f"the server is not ready; see {self._log}")

    def streams(
        self, dialect: Dialect, prompts: Sequence[str | Sequence[int]], tokens: int
    ) -> list[Stream]:
        """Stream a completion for every prompt, all at once."""
        streams: list[Stream | None] = [None] * len(prompts)

        def run(index: int) -> None:
            streams[index] = _stream(self.port, dialect, prompts[index], tokens)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        finished = [stream for stream in streams if stream is not None]
        if len(finished) < len(prompts):
            raise RuntimeError(f"a stream broke off; see {self._log}")
        return finished

    def close(self) -> None:
        """End the process: nothing runs any more that would have to be drained."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def decode_rate(streams: Sequence[Stream], dialect: Dialect) -> tuple[float, float | None]:
    """Tokens per second of streams that ran together, after each one's first; and acceptance.

    The clock runs from the first event of any stream to the last of any.
    """
    counts = [dialect.count(stream.events) for stream in streams]
    first = min(stream.arrivals_s[0] for stream in streams)
    last = max(stream.arrivals_s[-1] for stream in streams)
    tokens = sum(count.tokens - 1 for count in counts)
    drafted = sum(count.drafted for count in counts)
    accepted = sum(count.accepted for count in counts)
    return tokens / (last - first), accepted / drafted if drafted else None


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _stream(port: int, dialect: Dialect, prompt: str | Sequence[int], tokens: int) -> Stream | None:
    """One completion, event by event; None while the server says that it is loading (503)."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        body = json.dumps(dialect.body(prompt, tokens))
        connection.request("POST", dialect.path, body, {"Content-Type": "application/json"})
        try:
            response = connection.getresponse()
        except HTTPException as error:
            raise ConnectionError(str(error)) from error
        if response.status == 503:
            return None
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {response.read(2000)!r}")
        lines: list[bytes] = []
        stream = Stream()
        # Parsed afterwards: the client shares the cores with the server that it times.
        for line in response:
            if line.startswith(_PREFIX):
                stream.arrivals_s.append(time.perf_counter())
                lines.append(line[len(_PREFIX) :])
    finally:
        connection.close()
    if lines and lines[-1].strip() == b"[DONE]":
        lines.pop()
        stream.arrivals_s.pop()
    stream.events = [json.loads(line) for line in lines]
    if not stream.events:
        raise RuntimeError("the stream had no events")
    return stream

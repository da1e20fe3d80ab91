"""How late sleepers wake up: the lag of an event loop, and of the machine itself.

    python -P wakeups.py FILE                  a process that does nothing but sleep
    python -P wakeups.py FILE serve …          `bitskip serve …`, with a sleeper in its event loop

A sleeping task is woken late by exactly what holds its loop up: a callback that takes long, or
another thread that keeps the interpreter to itself. What a process that only sleeps sees is the
machine's part of it. FILE holds a line per wake-up once the process has been told to end: when
(on the system's monotonic clock) and how late, in seconds.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERVAL_S = 0.005


@dataclass
class Wakeups:
    """The record of one sleeper."""

    lines: list[str] = field(default_factory=list)

    def note(self, due_s: float) -> None:
        """Write down that it is awake now and was due at `due_s`."""
        now_s = time.monotonic()
        self.lines.append(f"{now_s:.6f} {max(0.0, now_s - due_s):.6f}\n")

    async def watch(self) -> None:
        """Sleep on the running event loop until cancelled."""
        while True:
            due_s = time.monotonic() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self.note(due_s)

    def sleep_until(self, end: threading.Event) -> None:
        """Sleep without a loop until told to end."""
        while not end.is_set():
            due_s = time.monotonic() + INTERVAL_S
            time.sleep(INTERVAL_S)
            self.note(due_s)


def read_wakeups(path: Path, begin_s: float, end_s: float) -> list[float]:
    """The lags, in milliseconds, between two times of the monotonic clock."""
    pairs = [line.split() for line in path.read_text().splitlines()]
    return [float(lag) * 1000 for at, lag in pairs if begin_s <= float(at) <= end_s]


def _serve(wakeups: Wakeups) -> None:
    import server.lifecycle
    from server.cli import app

    class WatchedLifecycle(server.lifecycle.Lifecycle):
        async def serve(self, *arguments: Any, **options: Any) -> int:
            watching = asyncio.create_task(wakeups.watch())
            try:
                return await super().serve(*arguments, **options)
            finally:
                watching.cancel()

    server.lifecycle.Lifecycle = WatchedLifecycle
    app()


def _main() -> None:
    path, wakeups = Path(sys.argv.pop(1)), Wakeups()
    try:
        if len(sys.argv) > 1:
            _serve(wakeups)
        else:
            end = threading.Event()
            signal.signal(signal.SIGTERM, lambda *_: end.set())
            wakeups.sleep_until(end)
    finally:
        path.write_text("".join(wakeups.lines))


if __name__ == "__main__":
    _main()

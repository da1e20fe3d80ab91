"""`bitskip` with a probe in the server's event loop, which writes down how late it wakes up.

    python -m support.loop_probe LAGS serve …

A sleeping task is woken late by exactly what holds the loop up: a callback that takes long, or
another thread that keeps the interpreter to itself. The lags, in seconds and one a line, are in
the file LAGS once the server has ended.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

from server.cli import app
from server.lifecycle import Lifecycle

INTERVAL_S = 0.005


class ProbedLifecycle(Lifecycle):
    """Serves as ever, and measures."""

    lags_path: Path

    async def serve(self, on_ready: Callable[[], None] | None = None) -> int:
        lags_s: list[float] = []
        watching = asyncio.create_task(watch(lags_s))
        try:
            return await super().serve(on_ready)
        finally:
            watching.cancel()
            self.lags_path.write_text("".join(f"{lag_s:.6f}\n" for lag_s in lags_s))


async def watch(lags_s: list[float]) -> None:
    """Append the lag of one wake-up after another; runs until cancelled."""
    while True:
        due_s = time.perf_counter() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        lags_s.append(max(0.0, time.perf_counter() - due_s))


if __name__ == "__main__":
    import server.lifecycle

    ProbedLifecycle.lags_path = Path(sys.argv.pop(1))
    server.lifecycle.Lifecycle = ProbedLifecycle
    app()

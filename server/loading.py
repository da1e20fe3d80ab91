"""Loading the model beside everything else that has to happen at the start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from server.engine_api import Engine

CheckCancelled = Callable[[], None]
"""Called now and then by whoever loads; raises `LoadCancelledError` once nobody waits any more."""


class LoadCancelledError(Exception):
    """Nobody waits for the model any more."""


class BackgroundLoad:
    """Runs a loading function in a thread of its own, which starts at once.

    `result` is the engine, or what kept it from being made.
    """

    def __init__(self, load: Callable[[CheckCancelled], Engine]) -> None:
        self.result: Future[Engine] = Future()
        self._cancelled = threading.Event()
        # A daemon: a process that has to end must not wait for a model that nobody wants.
        self._thread = threading.Thread(target=self._run, args=(load,), name="load", daemon=True)
        self._thread.start()

    def cancel(self, patience_s: float) -> bool:
        """Have loading stop where it can; whether the thread has ended in time."""
        self._cancelled.set()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise LoadCancelledError("loading was cancelled")

    def _run(self, load: Callable[[CheckCancelled], Engine]) -> None:
        # From now on whoever stops waiting for the result cannot cancel it away from under us.
        self.result.set_running_or_notify_cancel()
        try:
            self.result.set_result(load(self._check_cancelled))
        except BaseException as error:
            self.result.set_exception(error)

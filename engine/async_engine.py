"""The engine behind an asyncio server: one thread runs rounds, the event loop never does.

Two hops between threads, one each way: commands go through an inbox, and a whole step's outputs
come back in one `call_soon_threadsafe`. What crosses is frozen, or handed over for good.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum

from engine.backends.protocol import Backend
from engine.config import EngineConfig, ModelConfig
from engine.core import Core, StepResult
from engine.errors import EngineDeadError, EngineDrainingError, EngineUnavailableError
from engine.intake import Intake
from engine.metrics import StepStats
from engine.tokenizer import Tokenizer
from engine.types import ChoiceOutput, FinishReason, SamplingParams

logger = logging.getLogger(__name__)

_DEAD_MESSAGE = "the engine has stopped after an internal error"
_DRAIN_MESSAGE = "the server is shutting down"

DELIVERY_SLICE = 32
"""Outputs handed out before the event loop turns to something else. Each wakes a stream, which
then writes to its socket: 0.1 ms and more. A step may have hundreds, and whoever asks for
`/health`, or comes with a new request, should not wait for all of them."""

Command = Callable[[Core], None]


class EngineStatus(StrEnum):
    """Whether the engine takes requests, and why not."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class OutputStream(AsyncIterator[ChoiceOutput]):
    """The outputs of one request's choices; ends when every choice has ended."""

    def __init__(self, request_id: str, num_choices: int, on_abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._num_open = num_choices
        self._on_abort = on_abort
        self._queue: asyncio.Queue[ChoiceOutput] = asyncio.Queue()
        self._aborted = False

    async def __anext__(self) -> ChoiceOutput:
        if self._num_open == 0:
            raise StopAsyncIteration
        output = await self._queue.get()
        if output.finish_reason is not None:
            self._num_open -= 1
        return output

    def abort(self) -> None:
        """Stop the request if it still runs; its choices then end with `ABORT`. Idempotent."""
        if not self._aborted and self._num_open:
            self._aborted = True
            self._on_abort(self.request_id)

    def put(self, output: ChoiceOutput) -> None:
        """Called by the engine, on the event loop."""
        self._queue.put_nowait(output)


class _Inbox:
    """Commands for the engine thread; the thread sleeps here when there is nothing to do."""

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()
        self._condition = threading.Condition()

    def put(self, command: Command) -> None:
        with self._condition:
            self._commands.append(command)
            self._condition.notify()

    def take(self, wait: bool) -> list[Command]:
        """Every command so far; with `wait`, at least one."""
        with self._condition:
            while wait and not self._commands:
                self._condition.wait()
            commands = list(self._commands)
            self._commands.clear()
        return commands


class AsyncEngine:
    """Serves requests from an event loop; build one with `engine.build.build_engine`."""

    def __init__(self, core: Core, intake: Intake, backend: Backend) -> None:
        """Drive `core`; `backend`, its backend, is closed when the engine stops."""
        self._core = core
        self._intake = intake
        self._backend = backend
        self._inbox = _Inbox()
        self._streams: dict[str, OutputStream] = {}
        self._open: dict[str, set[int]] = {}
        """Request → the choices that have not ended."""
        self._listeners: list[Callable[[StepStats], None]] = []
        self._undelivered: deque[ChoiceOutput | StepStats] = deque()
        """What came from the engine thread and was not handed out yet, in order."""
        self._is_delivering = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._status = EngineStatus.LOADING

    @property
    def model_config(self) -> ModelConfig:
        """Shape of the served model."""
        return self._intake.model

    @property
    def config(self) -> EngineConfig:
        """The resolved engine configuration."""
        return self._intake.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The served model's tokenizer."""
        return self._intake.tokenizer

    @property
    def backend_name(self) -> str:
        """What computes the model."""
        return self._backend.name

    @property
    def backend_description(self) -> str:
        """How the backend computes: its instruction set or library, and its threads."""
        return self._backend.description

    @property
    def head_dtype(self) -> str:
        """What the head's weights are held in."""
        return self._backend.head_dtype

    @property
    def linear_dtype(self) -> str:
        """What the linears' weights are held in."""
        return self._backend.linear_dtype

    @property
    def kv_dtype(self) -> str:
        """What K/V is cached in."""
        return self._backend.kv_dtype

    @property
    def status(self) -> EngineStatus:
        """Whether requests are taken."""
        return self._status

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def add_stats_listener(self, listener: Callable[[StepStats], None]) -> None:
        """Have `listener` called on the event loop with every step's counts."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Start the engine thread; outputs go to the running event loop.

        Does nothing once the engine has been told to drain: it was shut down while loading.
        """
        if self._thread is not None:
            raise RuntimeError("an engine is started once")
        if self._status is not EngineStatus.LOADING:
            return
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._status = EngineStatus.READY
        self._thread.start()

    def submit(
        self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> OutputStream:
        """Queue a prompt and its choices. Call it on the event loop.

        Raises `InvalidRequestError`, `ContextLengthError`, or an `EngineUnavailableError`.
        """
        self._check_available()
        if request_id in self._streams:
            raise ValueError(f"request id {request_id!r} is in use")
        requests = self._intake.make_requests(request_id, prompt_token_ids, params)
        stream = OutputStream(request_id, len(requests), self._abort)
        self._streams[request_id] = stream
        self._open[request_id] = {request.index for request in requests}
        self._idle.clear()
        self._inbox.put(lambda core: core.add(requests))
        return stream

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests and wait for the others; the rest end with `shutting_down`."""
        if self._status is not EngineStatus.DEAD:
            self._status = EngineStatus.DRAINING
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            self._inbox.put(lambda core: core.fail_all(_DRAIN_MESSAGE, EngineDrainingError.code))
            await self._idle.wait()

    async def stop(self) -> None:
        """End everything at once, join the thread and release the backend."""
        if self._status is not EngineStatus.DEAD:
            await self.drain(0.0)
        self._stopping = True
        if self._thread is not None:
            self._inbox.put(lambda _: None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
            self._backend.close()

    # --- on the event loop -------------------------------------------------------------------

    def _check_available(self) -> None:
        if self._status is EngineStatus.READY:
            return
        if self._status is EngineStatus.DEAD:
            raise EngineDeadError(_DEAD_MESSAGE)
        if self._status is EngineStatus.DRAINING:
            raise EngineDrainingError(_DRAIN_MESSAGE)
        raise EngineUnavailableError("the engine is still loading")

    def _abort(self, request_id: str) -> None:
        self._inbox.put(lambda core: core.abort(request_id))

    def _deliver(self, result: StepResult) -> None:
        """Hand out a step's outputs, slice by slice, and its counts after them."""
        self._undelivered.extend(result.outputs)
        self._undelivered.append(result.stats)
        if not self._is_delivering:
            self._deliver_slice()

    def _deliver_slice(self) -> None:
        try:
            self._hand_out(DELIVERY_SLICE)
        finally:  # A listener that fails must not keep the rest from its streams.
            self._is_delivering = bool(self._undelivered)
            if self._is_delivering:
                assert self._loop is not None
                self._loop.call_soon(self._deliver_slice)

    def _hand_out(self, limit: int) -> None:
        for _ in range(min(limit, len(self._undelivered))):
            item = self._undelivered.popleft()
            if isinstance(item, ChoiceOutput):
                self._route(item)
                continue
            for listener in self._listeners:
                listener(item)

    def _route(self, output: ChoiceOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            return
        stream.put(output)
        if output.finish_reason is None:
            return
        self._open[output.request_id].discard(output.index)
        if not self._open[output.request_id]:
            del self._streams[output.request_id], self._open[output.request_id]
            if not self._streams:
                self._idle.set()

    def _die(self) -> None:
        """Answer everybody: no step will come any more."""
        self._status = EngineStatus.DEAD
        self._hand_out(len(self._undelivered))
        last = StepStats()  # Nothing runs any more: the gauges fall to 0.
        for request_id, stream in list(self._streams.items()):
            for index in sorted(self._open[request_id]):
                last.left_queue.append(request_id)
                stream.put(
                    ChoiceOutput(
                        request_id=request_id,
                        index=index,
                        tokens=(),
                        finish_reason=FinishReason.ERROR,
                        error=_DEAD_MESSAGE,
                        error_code=EngineDeadError.code,
                    )
                )
        self._streams.clear()
        self._open.clear()
        self._idle.set()
        for listener in self._listeners:
            listener(last)

    # --- on the engine thread ----------------------------------------------------------------

    def _run(self) -> None:
        assert self._loop is not None
        try:
            while not self._stopping:
                self._obey(wait=not self._core.has_work)
                if self._core.has_work:
                    self._loop.call_soon_threadsafe(self._deliver, self._core.step())
        except Exception:
            logger.exception("the engine thread has crashed")
            # A loop that is already closed has nobody left to tell.
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._die)

    def _obey(self, wait: bool) -> None:
        # In a frame of its own: an idle thread would keep the last command's requests alive.
        for command in self._inbox.take(wait):
            command(self._core)

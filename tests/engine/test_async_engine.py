"""The engine on its own thread, under a real event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engine.async_engine import DELIVERY_SLICE, AsyncEngine, EngineStatus, OutputStream
from engine.build import EngineParts
from engine.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineDrainingError,
    EngineUnavailableError,
    InvalidRequestError,
)
from engine.metrics import StepStats
from engine.types import ChoiceOutput, FinishReason, SamplingParams
from support.engine_parts import make_parts, run_to_end
from support.fake_backend import FakeBackend, fake_config

CONFIG = fake_config(vocab_size=64, num_layers=4, max_position_embeddings=128, eos_token_ids=(60,))
ENDLESS = SamplingParams(max_tokens=100, ignore_eos=True, temperature=0.0)


class GatedBackend(FakeBackend):
    """Waits at its gate from sweep number `hold_after` on, and breaks at `break_after`."""

    def __init__(self) -> None:
        super().__init__(CONFIG, agreement=0.8)
        self.gate = threading.Event()
        self.hold_after: int | None = None
        self.break_after: int | None = None
        self.num_closed = 0

    def sweep(self, sweep: Any) -> Any:
        if self._is_past(self.hold_after):
            assert self.gate.wait(60.0)
        if self._is_past(self.break_after):
            raise RuntimeError("the backend is on fire")
        return super().sweep(sweep)

    def close(self) -> None:
        self.num_closed += 1
        super().close()

    def _is_past(self, limit: int | None) -> bool:
        return limit is not None and self.counters.num_sweeps >= limit


class Bench:
    """An engine over a gated backend."""

    def __init__(self, **config: Any) -> None:
        self.backend = GatedBackend()
        # A fixed number of drafts: the controller's would depend on the clock.
        defaults = {"draft_exit_layer": 2, "num_speculations": 3}
        self.parts: EngineParts = make_parts(self.backend, **{**defaults, **config})
        self.engine = AsyncEngine(self.parts.core, self.parts.intake, self.backend)
        self.steps: list[StepStats] = []
        self.engine.add_stats_listener(self.steps.append)

    def submit(self, name: str, params: SamplingParams = ENDLESS) -> OutputStream:
        return self.engine.submit(name, [1, 2, 3], params)


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a coroutine as a test, on a loop of its own."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 120.0))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@asynccontextmanager
async def running(**config: Any) -> AsyncIterator[Bench]:
    bench = Bench(**config)
    await bench.engine.start()
    try:
        yield bench
    finally:
        bench.backend.gate.set()
        await bench.engine.stop()


async def read(stream: OutputStream) -> list[ChoiceOutput]:
    return [output async for output in stream]


async def until_told(bench: Bench) -> None:
    """Until a command waits for the engine, which is held at the gate."""
    await until(lambda: bench.engine._inbox._commands)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def token_ids(outputs: list[ChoiceOutput], index: int = 0) -> list[int]:
    return [token.token_id for o in outputs if o.index == index for token in o.tokens]


def reasons(outputs: list[ChoiceOutput]) -> dict[int, FinishReason]:
    return {o.index: o.finish_reason for o in outputs if o.finish_reason is not None}


# --- answering -------------------------------------------------------------------------------


@on_loop
async def test_streams_bring_what_the_core_brings() -> None:
    params = SamplingParams(max_tokens=20, n=3, seed=4)
    parts = make_parts(FakeBackend(CONFIG, agreement=0.8), draft_exit_layer=2)
    parts.core.add(parts.intake.make_requests("r", [1, 2, 3], params))
    expected = run_to_end(parts.core)
    async with running() as bench:
        streams = [bench.submit(name, params) for name in ("r", "s")]
        assert bench.engine.num_requests == 2
        for outputs in await asyncio.gather(*map(read, streams)):
            assert set(reasons(outputs)) == {0, 1, 2}
            for index in range(3):
                assert token_ids(outputs, index) == expected.token_ids("r", index)
        assert bench.engine.num_requests == 0


@on_loop
async def test_a_stream_ends_for_good() -> None:
    async with running() as bench:
        stream = bench.submit("r", SamplingParams(max_tokens=1))
        assert len(await read(stream)) == 1
        assert await read(stream) == []
        stream.abort()


@on_loop
async def test_refusals_reach_the_caller_and_leave_nothing() -> None:
    async with running() as bench:
        with pytest.raises(InvalidRequestError):
            bench.submit("r", SamplingParams(exit_layer=9))
        with pytest.raises(ContextLengthError):
            bench.submit("r", SamplingParams(max_tokens=126))
        assert bench.engine.num_requests == 0
        stream = bench.submit("r")
        with pytest.raises(ValueError, match="'r' is in use"):
            bench.submit("r")
        stream.abort()
        await read(stream)
        await read(bench.submit("r", SamplingParams(max_tokens=1)))


@on_loop
async def test_steps_are_counted_on_the_loop() -> None:
    threads: set[threading.Thread] = set()
    async with running() as bench:
        bench.engine.add_stats_listener(lambda _: threads.add(threading.current_thread()))
        await read(bench.submit("r", SamplingParams(max_tokens=8, ignore_eos=True)))
        await until(lambda: sum(len(step.finished) for step in bench.steps))
        assert sum(sum(step.generated.values()) for step in bench.steps) == 8
    assert threads == {threading.current_thread()}


@on_loop
async def test_a_step_of_many_outputs_leaves_the_loop_turns_in_between() -> None:
    num_outputs, turn = 3 * DELIVERY_SLICE + 5, 0

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async with running() as bench:
        counting = asyncio.create_task(count_turns())
        nothing = SamplingParams(max_tokens=0, n=num_outputs)  # All of them end in one step.
        read_in = Counter([turn async for _ in bench.submit("r", nothing)])
        counting.cancel()
    assert read_in.total() == num_outputs
    assert max(read_in.values()) == DELIVERY_SLICE


@on_loop
async def test_a_listener_that_fails_holds_no_output_back() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)

    def fail(_: StepStats) -> None:
        raise RuntimeError("no room for statistics")

    async with running() as bench:
        bench.engine.add_stats_listener(fail)
        many = SamplingParams(max_tokens=5, ignore_eos=True, n=4)
        streams = [bench.submit(f"r{number}", many) for number in range(20)]
        for stream in streams:
            assert len(reasons(await read(stream))) == 4


@on_loop
async def test_a_slow_consumer_blocks_nobody() -> None:
    async with running() as bench:
        slow = bench.submit("slow")
        quick = await read(bench.submit("quick", SamplingParams(max_tokens=30, ignore_eos=True)))
        assert len(token_ids(quick)) == 30
        await until(lambda: bench.engine.num_requests == 0)
        # Nothing of it was read so far, and nothing is lost.
        assert len(token_ids(await read(slow))) == 100


@on_loop
async def test_the_loop_is_free_while_a_sweep_runs() -> None:
    async with running() as bench:
        bench.backend.hold_after = 0
        stream = bench.submit("r", SamplingParams(max_tokens=1))
        for _ in range(20):
            await asyncio.sleep(0)
        bench.backend.gate.set()
        assert len(await read(stream)) == 1


# --- abort -----------------------------------------------------------------------------------


@on_loop
async def test_abort_ends_every_choice() -> None:
    async with running() as bench:
        bench.backend.hold_after = 4
        params = SamplingParams(max_tokens=100, ignore_eos=True, n=3)
        stream = bench.submit("r", params)
        first = await anext(stream)
        stream.abort()
        stream.abort()
        bench.backend.gate.set()
        outputs = [first, *await read(stream)]
        assert reasons(outputs) == dict.fromkeys(range(3), FinishReason.ABORT)
        assert bench.engine.num_requests == 0
        await until(lambda: bench.parts.core.cache.usage_ratio == 0.0)


@on_loop
async def test_abort_before_the_engine_has_seen_the_request() -> None:
    async with running() as bench:
        bench.backend.hold_after = 0
        busy, stream = bench.submit("busy"), bench.submit("r")
        stream.abort()
        busy.abort()
        bench.backend.gate.set()
        assert reasons(await read(stream)) == reasons(await read(busy)) == {0: FinishReason.ABORT}


# --- draining and stopping -------------------------------------------------------------------


@on_loop
async def test_drain_lets_requests_finish_and_refuses_new_ones() -> None:
    async with running() as bench:
        bench.backend.hold_after = 0
        stream = bench.submit("r", SamplingParams(max_tokens=5, ignore_eos=True))
        drain = asyncio.create_task(bench.engine.drain(60.0))
        await asyncio.sleep(0)
        assert bench.engine.status is EngineStatus.DRAINING
        with pytest.raises(EngineDrainingError) as raised:
            bench.submit("late")
        assert raised.value.code == "shutting_down"
        assert not drain.done()
        bench.backend.gate.set()
        await drain
        assert reasons(await read(stream)) == {0: FinishReason.LENGTH}


@on_loop
async def test_drain_cuts_off_what_takes_too_long() -> None:
    async with running(max_num_seqs=1) as bench:
        bench.backend.hold_after = 4
        streams = [bench.submit(name) for name in ("running", "waiting")]
        first = await anext(streams[0])
        drain = asyncio.create_task(bench.engine.drain(0.01))
        await until_told(bench)
        bench.backend.gate.set()
        await drain
        for stream in streams:
            last = (await read(stream))[-1]
            assert last.finish_reason is FinishReason.ERROR
            assert last.error_code == "shutting_down" and last.error
            assert last.metrics is not None
        assert first.finish_reason is None


@on_loop
async def test_stop_joins_the_thread_and_closes_the_backend() -> None:
    bench = Bench()
    threads = set(threading.enumerate())
    await bench.engine.start()
    (thread,) = set(threading.enumerate()) - threads
    bench.backend.hold_after = 4
    stream = bench.submit("r")
    await anext(stream)
    stop = asyncio.create_task(bench.engine.stop())
    await until_told(bench)
    bench.backend.gate.set()
    await stop
    assert not thread.is_alive()
    assert bench.backend.num_closed == 1
    assert reasons(await read(stream)) == {0: FinishReason.ERROR}
    await bench.engine.stop()
    assert bench.backend.num_closed == 1
    with pytest.raises(EngineUnavailableError):
        bench.submit("late")


@on_loop
async def test_an_engine_takes_nothing_before_it_is_started() -> None:
    bench = Bench()
    assert bench.engine.status is EngineStatus.LOADING
    with pytest.raises(EngineUnavailableError, match="loading"):
        bench.submit("r")
    await bench.engine.start()
    with pytest.raises(RuntimeError, match="once"):
        await bench.engine.start()
    await bench.engine.stop()


@pytest.mark.parametrize("shut", ["drain", "stop"])
def test_shut_down_while_loading_it_never_becomes_ready(shut: str) -> None:
    async def main() -> None:
        bench = Bench()
        ending: Awaitable[None] = (
            bench.engine.drain(1.0) if shut == "drain" else bench.engine.stop()
        )
        await ending
        threads = threading.active_count()
        await bench.engine.start()
        assert bench.engine.status is EngineStatus.DRAINING
        assert threading.active_count() == threads
        with pytest.raises(EngineDrainingError):
            bench.submit("r")
        await bench.engine.stop()

    asyncio.run(main())


# --- death -----------------------------------------------------------------------------------


@on_loop
async def test_a_crash_answers_everybody() -> None:
    async with running(max_num_seqs=2) as bench:
        params = SamplingParams(max_tokens=100, ignore_eos=True, n=3, temperature=0.0)
        bench.backend.break_after = 6
        streams = [bench.submit("running", params), bench.submit("waiting")]
        for stream, num_choices in zip(streams, (3, 1), strict=True):
            outputs = await read(stream)
            assert reasons(outputs) == dict.fromkeys(range(num_choices), FinishReason.ERROR)
            ends = [o for o in outputs if o.finish_reason]
            assert {o.error_code for o in ends} == {"engine_dead"} and all(o.error for o in ends)
        assert bench.engine.status is EngineStatus.DEAD
        assert bench.engine.num_requests == 0
        with pytest.raises(EngineDeadError) as raised:
            bench.submit("late")
        assert raised.value.code == "engine_dead"
        # Draining and stopping a dead engine wait for nobody.
        await bench.engine.drain(60.0)
        assert bench.engine.status is EngineStatus.DEAD
    assert bench.backend.num_closed == 1


@on_loop
async def test_a_crash_ends_only_the_choices_that_are_open() -> None:
    """Of two choices the first has ended already: it must not end again in the other's place."""
    params = SamplingParams(n=2, seed=3, max_tokens=100, logit_bias={60: 6.0})
    rehearsal = Bench()
    core = rehearsal.parts.core
    core.add(rehearsal.parts.intake.make_requests("r", [1, 2, 3], params))
    ended: dict[int, FinishReason] = {}
    while not ended:
        ended = reasons(core.step().outputs)
    assert ended == {0: FinishReason.STOP} and core.has_work
    async with running() as bench:
        bench.backend.break_after = rehearsal.backend.counters.num_sweeps
        outputs = await read(bench.submit("r", params))
        ends = [(o.index, o.finish_reason) for o in outputs if o.finish_reason]
        assert ends == [(0, FinishReason.STOP), (1, FinishReason.ERROR)]

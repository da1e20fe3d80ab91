"""Whatever happens to requests, nothing of them stays behind, and each of them ends once."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engine.async_engine import AsyncEngine, OutputStream
from engine.build import EngineParts
from engine.core import Core
from engine.request import Request
from engine.scheduler.scheduler import Scheduler
from engine.types import FinishReason, SamplingParams
from support.cache_checks import assert_blocks_accounted
from support.engine_parts import make_parts
from support.fake_backend import FakeBackend, fake_config
from support.histories import History

CONFIG = fake_config(vocab_size=32, num_layers=3, max_position_embeddings=64, eos_token_ids=(20,))


def small_parts(**config: int) -> EngineParts:
    backend = FakeBackend(CONFIG, agreement=0.8)
    options: dict[str, Any] = {
        "block_size": 4,
        "max_model_len": 56,
        "kv_cache_tokens": 80,
        "max_num_seqs": 6,
    }
    return make_parts(backend, draft_exit_layer=1, **{**options, **config})


def watch_requests(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[Request]:
    """The requests that are still alive, of all that are made from now on."""
    alive: weakref.WeakSet[Request] = weakref.WeakSet()
    make = Request.__init__

    def noting(self: Request, **arguments: object) -> None:
        make(self, **arguments)  # pyright: ignore[reportArgumentType]
        alive.add(self)

    monkeypatch.setattr(Request, "__init__", noting)
    return alive


def assert_nothing_held(core: Core, num_slots: int) -> None:
    assert_blocks_accounted(core)
    assert core.cache.num_free == core.cache._pool.num_total
    assert sorted(core.scheduler._free_slots) == list(range(num_slots))
    assert list(core.scheduler.requests()) == [] and not core.has_work


def live_a_history(num_aborted: int) -> tuple[EngineParts, Counter[str]]:
    """At least so many requests, aborted at random moments; everything else is gone with it."""
    parts = small_parts()
    history = History(parts, random.Random(3), num_requests=num_aborted, abort_rate=1.0)
    while history.step() is not None:
        pass
    history.assert_all_ended()
    reasons = Counter(history.ledger.reason(name) for name in history.choices)
    events = history.events + Counter(aborted=reasons[FinishReason.ABORT])
    return parts, events


def test_a_thousand_aborted_requests_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = watch_requests(monkeypatch)
    parts, events = live_a_history(1600)
    assert_nothing_held(parts.core, 6)
    gc.collect()
    assert len(alive) == 0
    assert events["aborted"] >= 1000
    stages = ("waiting", "waiting for its leader", "prefilling", "decoding")
    assert {stage for stage in stages if events[f"aborted while {stage}"] < 20} == set(), events


def leader_and_sibling(core: Core, parts: EngineParts) -> tuple[Request, Request]:
    """Two choices of a prompt of ten tokens, of which the first step reads four."""
    params = SamplingParams(n=2, max_tokens=5, temperature=0.0, seed=1)
    leader, sibling = parts.intake.make_requests("pair", list(range(1, 11)), params)
    core.add((leader, sibling))
    return leader, sibling


def test_a_leader_aborted_while_reading_takes_its_waiting_siblings_along() -> None:
    parts = small_parts(max_batched_tokens=4)
    core = parts.core
    leader, sibling = leader_and_sibling(core, parts)
    core.step()
    assert leader.slot is not None and sibling.slot is None
    core.abort("pair")
    outputs = core.step().outputs
    assert [(o.index, o.finish_reason) for o in outputs] == [(0, "abort"), (1, "abort")]
    assert_nothing_held(core, 6)


def test_an_abort_between_add_and_step_ends_a_request_once() -> None:
    parts = small_parts()
    core = parts.core
    leader_and_sibling(core, parts)
    core.abort("pair")
    core.abort("pair")
    assert len(core.step().outputs) == 2
    assert_nothing_held(core, 6)


def test_a_preempted_choice_can_be_aborted() -> None:
    parts = small_parts(kv_cache_tokens=56)
    core = parts.core
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.0)
    for name in ("a", "b"):
        core.add(parts.intake.make_requests(name, [1, 2, 3, 4, 5], params))
    while not core.step().stats.num_preemptions:
        pass
    (victim,) = [request for request in core.scheduler.requests() if request.slot is None]
    core.abort(victim.request_id)
    outputs = [o for o in core.step().outputs if o.request_id == victim.request_id]
    assert [o.finish_reason for o in outputs] == [FinishReason.ABORT]
    assert victim.num_generated > 0
    core.abort("a")
    core.abort("b")
    core.step()
    assert_nothing_held(core, 6)


def frees_nothing(scheduler: Scheduler, request: Request) -> None:
    line = scheduler._waiting if request.slot is None else scheduler._running
    line.remove(request)
    request.release()


def test_a_scheduler_that_frees_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "remove", frees_nothing)
    parts = small_parts()
    leader_and_sibling(parts.core, parts)
    parts.core.step()
    parts.core.abort("pair")
    parts.core.step()
    with pytest.raises(AssertionError):
        assert_nothing_held(parts.core, 6)


@asynccontextmanager
async def started(parts: EngineParts) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(parts.core, parts.intake, parts.backend)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def read_and_abort(
    stream: OutputStream, num_choices: int, patience: int
) -> list[FinishReason]:
    """Abort after `patience` outputs, and read on to the end; each choice's finish reason."""
    reasons: dict[int, FinishReason] = {}
    num_read = 0
    if patience == 0:
        stream.abort()
    async for output in stream:
        num_read += 1
        if num_read == patience:
            stream.abort()
        assert output.index not in reasons, "an output after the end"
        if output.finish_reason is not None:
            reasons[output.index] = output.finish_reason
    stream.abort()
    assert sorted(reasons) == list(range(num_choices))
    return list(reasons.values())


async def abort_many(engine: AsyncEngine, num_requests: int) -> Counter[FinishReason]:
    """Requests that come in handfuls, each aborted after as many outputs as chance has it."""
    rng = random.Random(8)
    reasons: Counter[FinishReason] = Counter()
    for first in range(0, num_requests, 20):
        readers = []
        for number in range(first, first + 20):
            params = SamplingParams(n=rng.randint(1, 3), max_tokens=12, seed=number)
            prompt = rng.choices(range(1, 20), k=rng.randint(1, 20))
            stream = engine.submit(f"r{number}", prompt, params)
            readers.append(read_and_abort(stream, params.n, rng.randrange(4)))
        for ended in await asyncio.gather(*readers):
            reasons.update(ended)
    return reasons


def test_the_threaded_engine_forgets_aborted_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive = watch_requests(monkeypatch)

    async def main() -> None:
        parts = small_parts()
        async with started(parts) as engine:
            reasons = await abort_many(engine, 200)
            assert engine.num_requests == 0
            assert (engine._streams, engine._open) == ({}, {})
            # One that ends by itself: its arrival is the last that the thread was told of.
            params = SamplingParams(max_tokens=3)
            assert len(await read_and_abort(engine.submit("last", [1], params), 1, 99)) == 1
            # The thread comes to rest a little after the loop has heard of the end.
            for _ in range(300):
                gc.collect()
                if not alive:
                    break
                await asyncio.sleep(0.005)
            assert len(alive) == 0
            assert reasons[FinishReason.ABORT] > 20
        assert_nothing_held(parts.core, 6)

    asyncio.run(main())

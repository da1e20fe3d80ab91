"""Sends a schedule, and times what comes back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace

from clients.bench.plan import PlannedRequest
from clients.bench.records import RequestRecord
from clients.bench.settings import Load
from clients.client import AsyncClient
from clients.errors import APIError, ClientError
from clients.options import CompletionStreamOptions
from clients.types import CompletionChunk

_LAG_PROBE_S = 0.01


@dataclass(frozen=True, slots=True)
class Sampling:
    """What every request of a benchmark has in common."""

    model: str | None = None
    temperature: float = 0.0
    ignore_eos: bool = True


@dataclass(slots=True)
class GeneratorLag:
    """The event loop's worst delay so far."""

    max_s: float = 0.0

    async def watch(self, clock: Callable[[], float]) -> None:
        """Sleep again and again, and see how late one wakes up; runs until cancelled."""
        while True:
            due_s = clock() + _LAG_PROBE_S
            await asyncio.sleep(_LAG_PROBE_S)
            self.max_s = max(self.max_s, clock() - due_s)


@dataclass(slots=True)
class _Answer:
    """What has come of one stream."""

    record: RequestRecord
    start_s: float
    """When the run began, on the clock."""
    event_s: list[float] = field(default_factory=list)
    event_tokens: list[int] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)

    def add(self, chunk: CompletionChunk, now_s: float) -> None:
        changes: dict[str, object] = {}
        for choice in chunk.choices:
            if choice.token_sources:
                self.event_s.append(now_s - self.start_s)
                self.event_tokens.append(len(choice.token_sources))
                self.sources.update(token.source.value for token in choice.token_sources)
            if choice.finish_reason is not None:
                changes["finish_reason"] = choice.finish_reason
        if (metrics := chunk.metrics) is not None:
            ttft_ms = metrics.time_to_first_token_ms
            changes["server_ttft_s"] = None if ttft_ms is None else ttft_ms / 1000
            changes["server_queue_s"] = metrics.queue_time_ms / 1000
        if (usage := chunk.usage) is not None:
            changes["prompt_tokens"] = usage.prompt_tokens
            changes["completion_tokens"] = usage.completion_tokens
            changes["accepted_tokens"] = usage.accepted_prediction_tokens
            changes["draft_tokens"] = (
                usage.accepted_prediction_tokens + usage.rejected_prediction_tokens
            )
        if changes:
            self.record = replace(self.record, **changes)

    def close(self, error: str | None) -> RequestRecord:
        return replace(
            self.record,
            event_s=tuple(self.event_s),
            event_tokens=tuple(self.event_tokens),
            sources=dict(self.sources),
            error=error,
        )


class Runner:
    """Runs schedules against one server, one after the other."""

    def __init__(
        self,
        client: AsyncClient,
        sampling: Sampling,
        *,
        on_finished: Callable[[RequestRecord], None] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """The client should not retry: a refusal is a result here."""
        self._client = client
        self._sampling = sampling
        self._on_finished = on_finished
        self._clock = clock

    async def run(
        self,
        schedule: Iterable[PlannedRequest],
        load: Load,
        *,
        max_concurrency: int | None = None,
        duration_s: float | None = None,
    ) -> tuple[tuple[RequestRecord, ...], float]:
        """Send everything; returns the requests in order, and the generator's worst lag.

        With a rate, requests are sent when they are due, whatever became of those before; where
        `max_concurrency` holds one back it still counts from when it was due. `duration_s` ends
        a closed loop, which a schedule alone would not.
        """
        async with self._watched() as lag:
            start_s = self._clock()
            if load.concurrency is None:
                records = await self._open_loop(schedule, start_s, max_concurrency)
            else:
                end_s = None if duration_s is None else start_s + duration_s
                records = await self._closed_loop(iter(schedule), start_s, load.concurrency, end_s)
        return tuple(sorted(records, key=lambda record: record.index)), lag.max_s

    @asynccontextmanager
    async def _watched(self) -> AsyncGenerator[GeneratorLag, None]:
        lag = GeneratorLag()
        watching = asyncio.create_task(lag.watch(self._clock))
        try:
            yield lag
        finally:
            watching.cancel()

    async def _open_loop(
        self, schedule: Iterable[PlannedRequest], start_s: float, max_concurrency: int | None
    ) -> list[RequestRecord]:
        gate = nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)

        async def send(planned: PlannedRequest, scheduled_s: float) -> RequestRecord:
            async with gate:
                return await self._send(planned, scheduled_s, start_s)

        tasks: list[asyncio.Task[RequestRecord]] = []
        async with asyncio.TaskGroup() as group:
            for planned in schedule:
                scheduled_s = planned.at_s or 0.0
                await asyncio.sleep(max(0.0, start_s + scheduled_s - self._clock()))
                tasks.append(group.create_task(send(planned, scheduled_s)))
        return [task.result() for task in tasks]

    async def _closed_loop(
        self,
        schedule: Iterator[PlannedRequest],
        start_s: float,
        concurrency: int,
        end_s: float | None,
    ) -> list[RequestRecord]:
        records: list[RequestRecord] = []

        async def send_in_turn() -> None:
            while end_s is None or self._clock() < end_s:
                planned = next(schedule, None)
                if planned is None:
                    return
                now_s = self._clock() - start_s
                records.append(await self._send(planned, now_s, start_s))

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(send_in_turn())
        return records

    async def _send(
        self, planned: PlannedRequest, scheduled_s: float, start_s: float
    ) -> RequestRecord:
        answer = _Answer(
            RequestRecord(
                index=planned.index,
                exit_layer=planned.setting.exit_layer,
                speculation=planned.setting.speculation,
                seed=planned.seed,
                scheduled_s=scheduled_s,
                sent_s=self._clock() - start_s,
            ),
            start_s,
        )
        error = None
        try:
            async with await self._client.stream(
                planned.prompt, **self._options(planned)
            ) as stream:
                async for chunk in stream:
                    answer.add(chunk, self._clock())
        except ClientError as failure:
            error = _in_short(failure)
        record = answer.close(error)
        self._on_finished(record)
        return record

    def _options(self, planned: PlannedRequest) -> CompletionStreamOptions:
        return {
            "model": self._sampling.model,
            "max_tokens": planned.max_tokens,
            "temperature": self._sampling.temperature,
            "ignore_eos": self._sampling.ignore_eos,
            "seed": planned.seed,
            "exit_layer": planned.setting.exit_layer,
            "speculative": planned.setting.speculative,
            "return_metrics": True,
            # Says how many tokens an event brings, those without text too.
            "return_token_sources": True,
        }


def _in_short(error: ClientError) -> str:
    """A text that equal failures share, so that they can be counted."""
    name = type(error).__name__
    if isinstance(error, APIError):
        return f"{name} {error.status or 'in the stream'}: {error.message[:200]}"
    return name

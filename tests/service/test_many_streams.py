"""Two hundred streams at once on the demo model: everybody is served, and nobody waits for long.

What is asserted is counts; times are printed, to be read with `pytest -s` on a machine that has
nothing else to do.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
from rich.console import Console

from clients import NO_RETRIES, AsyncClient
from clients.bench.display import print_report
from clients.bench.records import Distribution, Report
from clients.bench.session import BenchOptions, run_bench
from clients.bench.settings import Load, Setting
from support import wakeups
from support.served_process import serving

NUM_STREAMS = 200
ARRIVALS_PER_S = 500.0
SETTINGS = (
    Setting(None, "auto"),
    Setting(None, "off"),
    Setting(None, "3x4"),
    Setting(9, "3x2"),
    Setting(6, "off"),
    Setting(3, "ngram"),
)
WORDS = "once upon a time there was a little girl who had a red ball and a dog named Tim"
SCRAPE_EVERY_S = 0.25


def write_prompts(path: Path) -> Path:
    """A request for each stream: 5 to 60 words, and from 400 tokens for the first to come down to
    100 for the last, so that the first still runs then."""
    random, words = Random(1), WORDS.split()
    lines = [
        {
            "prompt": " ".join(random.choices(words, k=random.randint(5, 60))),
            "max_tokens": 400 - place * 300 // (NUM_STREAMS - 1),
        }
        for place in range(NUM_STREAMS)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@contextmanager
def sleeper(path: Path) -> Iterator[None]:
    """A process that records the machine's own lags."""
    process = subprocess.Popen([sys.executable, "-P", wakeups.__file__, path])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def run(url: str, options: BenchOptions) -> tuple[Report, float]:
    """The report, and the most choices that ran at once."""
    async with AsyncClient(url, retry=NO_RETRIES) as client:
        most_running = 0.0

        async def watch() -> None:
            nonlocal most_running
            while True:
                running = (await client.metrics()).total("bitskip_num_requests_running")
                most_running = max(most_running, running)
                await asyncio.sleep(SCRAPE_EVERY_S)

        watching = asyncio.create_task(watch())
        try:
            return await run_bench(client, options), most_running
        finally:
            watching.cancel()


def in_ms(figures: Distribution | None) -> str:
    assert figures is not None
    return (
        f"p50 {figures.p50 * 1000:.1f}, p99 {figures.p99 * 1000:.1f}, "
        f"max {figures.max * 1000:.1f}, p99/p50 {figures.p99 / figures.p50:.2f}"
    )


def test_two_hundred_streams_at_once(tmp_path: Path) -> None:
    loop_lags, machine_lags = tmp_path / "loop", tmp_path / "machine"
    options = BenchOptions(
        loads=(Load(rate=ARRIVALS_PER_S),),
        settings=SETTINGS,
        mix=True,
        num_requests=NUM_STREAMS,
        prompts=write_prompts(tmp_path / "prompts.jsonl"),
        num_warmups=6,
    )
    # -P: the files beside the script must not be taken for packages of their names.
    command = (sys.executable, "-P", wakeups.__file__, str(loop_lags))
    room = ("--kv-cache-tokens", "98304")
    with sleeper(machine_lags), serving(None, tmp_path / "log", *room, command=command) as served:
        begin_s = time.monotonic()
        report, most_running = asyncio.run(run(served.url, options))
        end_s = time.monotonic()
        served.terminate()
        assert served.process.wait(60) == 0
    (result,) = report.runs
    print_report(report, Console())
    summary = result.summary
    for name, figures in (
        ("time to first token", summary.ttft_s),
        ("per token", summary.itl_s),
        ("between events", summary.gap_s),
    ):
        print(f"{name}, ms: {in_ms(figures)}")
    for name, path in (("event loop", loop_lags), ("machine", machine_lags)):
        lags_ms = wakeups.read_wakeups(path, begin_s, end_s)
        p50, p99, p999 = np.percentile(lags_ms, (50, 99, 99.9))
        print(
            f"lag of the {name}, ms: p50 {p50:.1f}, p99 {p99:.1f}, p99.9 {p999:.1f}, "
            f"max {max(lags_ms):.1f}"
        )
    assert summary.errors == {}
    assert summary.num_completed == NUM_STREAMS == len(result.requests)
    assert most_running == NUM_STREAMS
    for record in result.requests:
        assert record.finish_reason == "length"
        assert sum(record.event_tokens) == record.completion_tokens
    server = result.server
    assert server is not None and server.generation_tokens == summary.completion_tokens
    assert {record.exit_layer for record in result.requests} == {None, 3, 6, 9}

"""Load on a real server: what the generator saw, and what the server says of the same run."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from clients import NO_RETRIES, AsyncClient
from clients.bench.lengths import Lengths
from clients.bench.plan import PlannedRequest
from clients.bench.records import Report, RequestRecord, Run, read_report
from clients.bench.runner import Runner, Sampling
from clients.bench.session import BenchOptions, run_bench
from clients.bench.settings import Load, Setting, parse_settings
from clients.bench.summary import summarise
from server.cli import app
from support.live_server import wait_until
from support.scripted_server import (
    DONE,
    Reply,
    envelope,
    event,
    event_stream,
    refusal,
    scripted_server,
    text_chunk,
)
from support.served_process import ServedProcess

PROMPTS = "Once upon a time\nThe girl said\nA big red ball\n"
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(PROMPTS)
    return path


def measure(url: str, options: BenchOptions) -> Report:
    async def run() -> Report:
        async with AsyncClient(url, retry=NO_RETRIES) as client:
            return await run_bench(client, options)

    return asyncio.run(run())


def check(run: Run, num_requests: int) -> None:
    """What must hold of every run without failures."""
    assert [record.index for record in run.requests] == list(range(num_requests))
    for record in run.requests:
        assert record.error is None and record.finish_reason == "length"
        assert sum(record.event_tokens) == record.completion_tokens
        assert sum((record.sources or {}).values()) == record.completion_tokens
        assert record.scheduled_s <= record.sent_s <= record.event_s[0]
        assert all(earlier <= later for earlier, later in pairwise(record.event_s))
        assert record.server_ttft_s is not None and record.ttft_s is not None
    assert run.summary == summarise(run.requests, run.summary.max_generator_lag_s)
    check_server(run)


def check_server(run: Run) -> None:
    """Client and server tell of the same run."""
    server, summary = run.server, run.summary
    assert server is not None and summary.ttft_s is not None
    assert server.ttft.count == server.e2e.count == summary.num_completed == summary.ttft_s.count
    assert server.generation_tokens == summary.completion_tokens
    itl_s = [value for record in run.requests for value in record.inter_token_latencies_s()]
    assert server.itl.count == len(itl_s)
    accepted = sum(record.accepted_tokens for record in run.requests)
    drafted = sum(record.draft_tokens for record in run.requests)
    assert (server.accepted_tokens, server.draft_tokens) == (accepted, drafted)
    # The client's clock starts before the server's and stops after it.
    ttft_s = math.fsum(record.ttft_s or 0.0 for record in run.requests)
    e2e_s = math.fsum(record.e2e_s or 0.0 for record in run.requests)
    told_s = math.fsum(record.server_ttft_s or 0.0 for record in run.requests)
    assert server.ttft.sum_s == pytest.approx(told_s, abs=1e-6)
    assert ttft_s >= server.ttft.sum_s
    assert e2e_s >= server.ttft.sum_s + server.itl.sum_s
    assert math.fsum(itl_s) == pytest.approx(e2e_s - ttft_s)


def test_poisson_arrivals_agree_with_the_server(demo: ServedProcess, prompts: Path) -> None:
    options = BenchOptions(
        loads=(Load(rate=40.0),),
        settings=parse_settings("6,all", "off,3x4"),
        num_requests=12,
        prompts=prompts,
        output_lengths=Lengths("uniform", 8, 40),
    )
    report = measure(demo.url, options)
    assert report.model == "bitskip-demo" and report.num_layers == 12
    assert len(report.runs) == 4
    for run in report.runs:
        check(run, 12)
        due_s = [record.scheduled_s for record in run.requests]
        assert due_s == [record.scheduled_s for record in report.runs[0].requests]
        drafted = run.settings[0].endswith("3x4")
        assert (run.summary.acceptance_rate is not None) == drafted
        assert ("draft" in (run.requests[0].sources or {})) == drafted
    asked = [{record.exit_layer for record in run.requests} for run in report.runs]
    assert asked == [{6}, {6}, {None}, {None}]


def test_a_closed_loop_agrees_with_the_server(demo: ServedProcess, prompts: Path) -> None:
    options = BenchOptions(
        loads=(Load(concurrency=3),),
        settings=parse_settings("9", "x2,ngram,off"),
        mix=True,
        num_requests=15,
        prompts=prompts,
        output_lengths=Lengths("fixed", 24),
    )
    (run,) = measure(demo.url, options).runs
    check(run, 15)
    assert len({record.speculation for record in run.requests}) > 1
    assert most_at_once(run.requests) == 3


def most_at_once(records: Sequence[RequestRecord]) -> int:
    """How many requests were open at the same time."""
    changes = [(record.sent_s, 1) for record in records]
    changes += [(record.event_s[-1], -1) for record in records]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def test_the_same_seed_gives_the_same_text_whatever_the_load(
    demo: ServedProcess, prompts: Path
) -> None:
    """What was asked, and so what was answered, follows from the benchmark's seed."""
    options = BenchOptions(
        loads=(Load(rate=math.inf), Load(concurrency=2)),
        settings=(Setting(6),),
        num_requests=6,
        prompts=prompts,
        output_lengths=Lengths("uniform", 5, 60),
        num_warmups=0,
        sampling=Sampling(temperature=1.0, ignore_eos=False),
    )
    first, second = (run.requests for run in measure(demo.url, options).runs)
    assert [(r.seed, r.completion_tokens, r.finish_reason) for r in first] == [
        (r.seed, r.completion_tokens, r.finish_reason) for r in second
    ]


def test_a_duration_ends_a_closed_loop(demo: ServedProcess, prompts: Path) -> None:
    options = BenchOptions(
        loads=(Load(concurrency=2),),
        settings=(Setting(6),),
        num_requests=None,
        duration_s=0.5,
        prompts=prompts,
        output_lengths=Lengths("fixed", 8),
    )
    (run,) = measure(demo.url, options).runs
    check(run, len(run.requests))
    assert len(run.requests) >= 2
    assert max(record.sent_s for record in run.requests) < 0.5


def planned(num_requests: int) -> list[PlannedRequest]:
    return [PlannedRequest(index, 0.0, "x", 1, Setting(), index) for index in range(num_requests)]


def one_token(**options: Any) -> Reply:
    """A whole answer of one token."""
    source = [{"token_id": 1, "text": "a", "source": "plain"}]
    chunk = text_chunk("a", "length", token_sources=source)
    return event_stream(event(chunk), event(envelope(usage=USAGE)), DONE, **options)


def send(url: str, requests: Sequence[PlannedRequest], **options: Any) -> tuple[RequestRecord, ...]:
    async def run() -> tuple[RequestRecord, ...]:
        async with AsyncClient(url, retry=NO_RETRIES) as client:
            load = Load(rate=math.inf)
            return (await Runner(client, Sampling()).run(requests, load, **options))[0]

    return asyncio.run(run())


def test_a_stalled_server_does_not_hold_requests_back() -> None:
    """An open loop: all are sent when they are due, though none is answered."""
    gate = threading.Event()
    with scripted_server(*[one_token(gate=gate)] * 8) as scripted:

        def release() -> None:
            wait_until(lambda: len(scripted.received) == 8)
            gate.set()

        releasing = threading.Thread(target=release)
        releasing.start()
        records = send(scripted.url, planned(8))
        releasing.join()
    assert [record.error for record in records] == [None] * 8


def test_a_stall_counts_for_the_requests_that_it_delays() -> None:
    """No coordinated omission: who waits for a place waits from when the request was due."""
    stall_s, num_requests = 0.15, 4
    with scripted_server(*[one_token(delay_s=stall_s)] * num_requests) as scripted:
        records = send(scripted.url, planned(num_requests), max_concurrency=1)
    for place, record in enumerate(records, 1):
        assert record.scheduled_s == 0.0
        assert record.sent_s >= (place - 1) * stall_s
        assert record.ttft_s is not None and record.ttft_s >= place * stall_s
        # What a generator would report that counts from when it got round to sending.
        assert record.event_s[0] - record.sent_s <= record.ttft_s - (place - 1) * stall_s


def test_failures_are_counted_and_not_tried_again() -> None:
    broken = event_stream(
        event(text_chunk("a", token_sources=[{"token_id": 1, "text": "a", "source": "draft"}])),
        complete=False,
    )
    with scripted_server(refusal(429), one_token(), broken, Reply()) as scripted:
        records = [send(scripted.url, planned(1))[0] for _ in range(4)]
        assert len(scripted.received) == 4
    summary = summarise([replace(r, index=i) for i, r in enumerate(records)], 0.0)
    assert (summary.num_completed, summary.num_failed) == (1, 3)
    assert summary.errors == {
        "QueueFullError 429: status 429": 1,
        "StreamInterruptedError": 1,
        "ServerConnectionError": 1,
    }
    assert records[2].event_tokens == (1,), "how far it came is kept"


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_the_command_writes_json_and_pictures(
    demo: ServedProcess, prompts: Path, tmp_path: Path
) -> None:
    output, plots = tmp_path / "out" / "bench.json", tmp_path / "plots"
    done = bench(
        *("--url", demo.url, "--prompts", prompts, "--rate", "50", "--num-requests", "6"),
        *("--exit-layers", "6,all", "--speculation", "off,3x4", "--output-len", "uniform:4:16"),
        *("--output", output, "--plots", plots),
    )
    assert done.exit_code == 0, done.output
    for part in ("exit 6, speculation 3x4", "tok/s", "TTFT", "means by the server's clock"):
        assert part in done.stdout
    report = read_report(output)
    assert [len(run.requests) for run in report.runs] == [6] * 4
    for run in report.runs:
        check(run, 6)
    for name in ("latencies.png", "throughput.png"):
        assert (plots / name).read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_json(demo: ServedProcess, prompts: Path, tmp_path: Path) -> None:
    arguments = ("--url", demo.url, "--prompts", prompts, "--num-requests", "4", "--json")
    done = bench(*arguments, "--concurrency", "2", "--output-len", "4")
    assert done.exit_code == 0, done.output
    raw = json.loads(done.stdout)
    assert (raw["kind"], raw["format_version"]) == ("bitskip-bench", 1)
    assert raw["options"]["loads"] == "2 at once"
    path = tmp_path / "report.json"
    for wrong in ({"format_version": 2}, {"runs": None}, {"model": 3}):
        path.write_text(json.dumps({**raw, **wrong}))
        with pytest.raises(ValueError):
            read_report(path)
    path.write_text(json.dumps(raw))
    assert len(read_report(path).runs[0].requests) == 4


def test_the_command_fails_where_a_request_failed(demo: ServedProcess, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x", "max_tokens": 4}\n{"prompt": "x", "exit_layer": 99}\n')
    done = bench("--url", demo.url, "--prompts", path, "--num-requests", "2", "--num-warmups", "0")
    assert done.exit_code == 1
    assert "1 failed: BadRequestError 400: exit_layer must lie in 1..12" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--rate", "1", "--concurrency", "2"), "--concurrency"),
        (("--num-requests", "1", "--duration", "2"), "--duration"),
        (("--rate", "fast"), "'fast' is no rate"),
        (("--speculation", "on"), "'on' is not one of"),
        (("--output-len", "x"), "'x' is not one of"),
        (("--prompts", "/no/such/file"), "No such file"),
        (("--model", "other"), "does not know 'other', only bitskip-demo"),
    ],
)
def test_options_that_are_none(demo: ServedProcess, arguments: tuple[str, ...], part: str) -> None:
    done = bench("--url", demo.url, *arguments)
    assert done.exit_code in (1, 2) and part in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("option", "place", "code"),
    [
        ("--output", ".", errno.EISDIR),
        ("--output", "file/run.json", errno.ENOTDIR),
        ("--plots", "file", errno.ENOTDIR),
    ],
)
def test_what_cannot_be_written_is_known_before_load_is_sent(
    tmp_path: Path, option: str, place: str, code: int
) -> None:
    """The server is not there at all: nobody has asked it anything."""
    (tmp_path / "file").touch()
    done = bench("--url", "http://127.0.0.1:1", option, tmp_path / place)
    assert done.exit_code == 1
    culprit = tmp_path / place if option == "--plots" or place == "." else tmp_path / "file"
    assert done.stderr == f"error: {culprit}: {os.strerror(code)}\n"


def test_no_two_of_forty_runs_are_drawn_alike() -> None:
    from clients.bench.plots import line_styles

    styles = list(itertools.islice(line_styles(), 40))
    assert len({tuple(style.items()) for style in styles}) == 40

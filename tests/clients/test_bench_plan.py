"""What a benchmark sends, and when; how its figures are made. No server is needed."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from random import Random
from typing import Any

import pytest

from clients.bench.lengths import Lengths, parse_lengths
from clients.bench.plan import PlannedRequest, Workload
from clients.bench.prompts import MadeUpText, ReadPrompt, read_prompts
from clients.bench.records import RequestRecord
from clients.bench.session import BenchOptions, run_plans
from clients.bench.settings import Load, Setting, parse_loads, parse_settings
from clients.bench.summary import distribution, summarise
from clients.options import Speculative

TEXT = MadeUpText(tuple(range(1000)))
SETTINGS = parse_settings("3,all", "off,3x4")


def workload(**changes: Any) -> Workload:
    options: dict[str, Any] = {
        "prompts": TEXT,
        "input_lengths": Lengths("uniform", 5, 40),
        "output_lengths": Lengths("lognormal", 30, 0.7),
        "max_model_len": 100,
        "num_requests": 200,
        "duration_s": None,
        "seed": 1,
    }
    return Workload(**{**options, **changes})


def schedule(load: Load, **changes: Any) -> list[PlannedRequest]:
    return list(itertools.islice(workload(**changes).schedule(load, SETTINGS), 10_000))


def content(requests: list[PlannedRequest]) -> list[Any]:
    """All but the times."""
    return [(r.index, r.prompt, r.max_tokens, r.setting, r.seed) for r in requests]


def test_a_schedule_follows_from_its_seed() -> None:
    first, again = schedule(Load(rate=5)), schedule(Load(rate=5))
    assert first == again
    other = schedule(Load(rate=5), seed=2)
    assert content(first) != content(other)
    assert [request.at_s for request in first] != [request.at_s for request in other]


@pytest.mark.parametrize(
    ("inputs", "outputs"), [("100", "1"), ("60", "41"), ("uniform:90:95", "20")]
)
def test_lengths_that_never_fit_are_refused(inputs: str, outputs: str) -> None:
    lengths = {"input_lengths": parse_lengths(inputs), "output_lengths": parse_lengths(outputs)}
    with pytest.raises(ValueError, match="context of 100"):
        workload(**lengths)
    assert workload(**lengths, prompts=())
    assert workload(**lengths, max_model_len=120)


def test_every_load_sends_the_same_requests() -> None:
    expected = content(schedule(Load(rate=5)))
    for load in (Load(rate=50), Load(rate=math.inf), Load(concurrency=3)):
        assert content(schedule(load)) == expected
    assert content(schedule(Load(concurrency=3), num_requests=20)) == expected[:20]


def test_poisson_arrivals() -> None:
    times_s = [request.at_s or 0.0 for request in schedule(Load(rate=4), num_requests=2000)]
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(times_s)]
    assert times_s[0] == 0 and min(gaps_s) >= 0
    # Of an exponential distribution: mean and deviation are equal. Four standard errors.
    assert statistics.mean(gaps_s) == pytest.approx(0.25, rel=0.1)
    assert statistics.stdev(gaps_s) == pytest.approx(0.25, rel=0.13)


def test_an_infinite_rate_sends_all_at_the_start() -> None:
    assert {request.at_s for request in schedule(Load(rate=math.inf))} == {0.0}


def test_a_closed_loop_has_no_times() -> None:
    assert {request.at_s for request in schedule(Load(concurrency=2))} == {None}


def test_a_duration_ends_a_schedule() -> None:
    times_s = [
        request.at_s or 0.0
        for request in schedule(Load(rate=20), num_requests=None, duration_s=10.0)
    ]
    assert 140 < len(times_s) < 260 and max(times_s) < 10.0


def test_lengths_fit_the_model() -> None:
    requests = schedule(Load(rate=1), input_lengths=Lengths("lognormal", 80, 1.0))
    lengths = [(len(request.prompt), request.max_tokens) for request in requests]
    assert all(1 <= num_in < 100 and 1 <= num_out <= 100 - num_in for num_in, num_out in lengths)
    assert any(num_in == 99 for num_in, _ in lengths), "none was cut"


def test_made_up_prompts_are_parts_of_the_text() -> None:
    for request in schedule(Load(rate=1)):
        first = request.prompt[0]
        assert isinstance(first, int)
        assert list(request.prompt) == [(first + i) % 1000 for i in range(len(request.prompt))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64", Lengths("fixed", 64)),
        ("fixed:7", Lengths("fixed", 7)),
        ("uniform:2:9", Lengths("uniform", 2, 9)),
        ("lognormal:100:0.5", Lengths("lognormal", 100, 0.5)),
    ],
)
def test_lengths_are_read(text: str, expected: Lengths) -> None:
    assert parse_lengths(text) == expected
    assert parse_lengths(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "0", "1:2", "fixed", "uniform:1", "uniform:9:2"),
        *("lognormal:10:-1", "lognormal:inf:1"),
    ],
)  # fmt: skip
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=repr(text)):
        parse_lengths(text)


def test_drawn_lengths() -> None:
    random = Random(1)
    uniform = [Lengths("uniform", 2, 4).draw(random) for _ in range(300)]
    assert set(uniform) == {2, 3, 4}
    lognormal = [Lengths("lognormal", 50, 0.5).draw(random) for _ in range(2000)]
    assert statistics.median(lognormal) == pytest.approx(50, rel=0.1)
    assert statistics.stdev(map(math.log, lognormal)) == pytest.approx(0.5, rel=0.1)
    assert min(Lengths("lognormal", 1, 3.0).draw(random) for _ in range(300)) == 1


@pytest.mark.parametrize(
    ("speculation", "expected"),
    [
        ("server", None),
        ("off", False),
        ("auto", True),
        ("ngram", Speculative(method="ngram")),
        ("x4", Speculative(num_speculations=4)),
        ("3x", Speculative(exit_layer=3, method="early_exit")),
        ("3x0", Speculative(exit_layer=3, num_speculations=0, method="early_exit")),
    ],
)
def test_forms_of_speculation(speculation: str, expected: object) -> None:
    assert Setting(None, speculation).speculative == expected


@pytest.mark.parametrize("speculation", ["x", "", "3", "3x4x5", "on"])
def test_forms_of_speculation_that_are_none(speculation: str) -> None:
    with pytest.raises(ValueError):
        parse_settings("all", speculation or "yes")


def test_sweeps_and_mixes() -> None:
    loads = parse_loads("1,inf", None)
    assert loads == (Load(rate=1.0), Load(rate=math.inf))
    assert parse_loads(None, None) == (Load(concurrency=4),)
    assert len(SETTINGS) == 4
    swept = run_plans(BenchOptions(loads=loads, settings=SETTINGS))
    assert [(plan.load, plan.settings) for plan in swept] == [
        (load, (setting,)) for load in loads for setting in SETTINGS
    ]
    mixed = run_plans(BenchOptions(loads=loads, settings=SETTINGS, mix=True))
    assert [(plan.load, plan.settings) for plan in mixed] == [(load, SETTINGS) for load in loads]
    assert {request.setting for request in schedule(loads[0])} == set(SETTINGS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_requests": None},
        {"num_requests": 5, "duration_s": 1.0},
        {"num_requests": None, "duration_s": 0.0},
        {"num_requests": None, "duration_s": 1.0, "loads": (Load(rate=math.inf),)},
        {"loads": ()},
    ],
)
def test_benchmarks_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        BenchOptions(**{"loads": (Load(rate=1),), "settings": SETTINGS, **wrong})


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.0}, {"concurrency": 0}, {}, {"rate": 1.0, "concurrency": 1}]
)
def test_loads_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Load(**wrong)


def test_prompts_of_text_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("one\r\n\n two \nthree\u2028here".encode())
    assert read_prompts(path) == (
        ReadPrompt("one"),
        ReadPrompt(" two "),
        ReadPrompt("three\u2028here"),
    )


def test_prompts_of_json_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines: list[dict[str, Any]] = [
        {"prompt": "a\nb", "max_tokens": 7},
        {"prompt": [1, 2], "exit_layer": 3, "speculation": "2x4"},
        {"prompt": "c"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    prompts = read_prompts(path)
    assert prompts == (
        ReadPrompt("a\nb", 7),
        ReadPrompt((1, 2), None, Setting(3, "2x4")),
        ReadPrompt("c"),
    )
    requests = schedule(Load(rate=1), prompts=prompts, num_requests=7)
    assert [request.prompt for request in requests] == [
        "a\nb", (1, 2), "c", "a\nb", (1, 2), "c", "a\nb",
    ]  # fmt: skip
    assert requests[3].max_tokens == 7 and requests[4].setting == Setting(3, "2x4")
    assert requests[2].setting in SETTINGS


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "{}", '{"prompt": ""}', '{"prompt": [true]}', '{"prompt": "x", "max_token": 1}',
        '{"prompt": "x", "max_tokens": 0}', '{"prompt": "x", "exit_layer": 2.0}',
        '{"prompt": "x", "speculation": "on"}',
    ],
)  # fmt: skip
def test_prompts_that_are_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line)
    with pytest.raises(ValueError, match="line 2"):
        read_prompts(path)


def test_a_file_without_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="no prompt"):
        read_prompts(path)


def record(index: int, **changes: Any) -> RequestRecord:
    options: dict[str, Any] = {
        "index": index,
        "exit_layer": None,
        "speculation": "off",
        "seed": 1,
        "scheduled_s": 1.0,
        "sent_s": 1.5,
        "event_s": (2.0, 2.6, 3.0),
        "event_tokens": (1, 3, 1),
        "prompt_tokens": 4,
        "completion_tokens": 5,
        "draft_tokens": 6,
        "accepted_tokens": 2,
    }
    return RequestRecord(**{**options, **changes})


def test_latencies_of_a_request() -> None:
    one = record(0)
    assert one.ttft_s == 1.0, "from when it was due, not from when it was sent"
    assert one.e2e_s == 2.0
    assert one.gaps_s == pytest.approx([0.6, 0.4])
    assert list(one.inter_token_latencies_s()) == pytest.approx([0.2, 0.2, 0.2, 0.4])
    failed = record(0, error="x")
    assert failed.ttft_s == 1.0 and failed.e2e_s is None
    nothing = record(0, event_s=(), event_tokens=())
    assert nothing.ttft_s is None and list(nothing.inter_token_latencies_s()) == []


def test_percentiles() -> None:
    figures = distribution([float(value) for value in range(101)])
    assert figures is not None
    assert (figures.count, figures.mean, figures.p50, figures.p90) == (101, 50, 50, 90)
    assert (figures.p95, figures.p99, figures.max) == (95, 99, 100)
    assert distribution([None]) is None


def test_figures_of_a_run() -> None:
    records = [
        record(0),
        record(1, scheduled_s=0.0, sent_s=0.0, event_s=(1.0, 5.0), event_tokens=(1, 4)),
        record(2, error="QueueFullError 429: busy", event_s=(), event_tokens=()),
    ]
    summary = summarise(records, 0.01)
    assert (summary.num_completed, summary.num_failed) == (2, 1)
    assert summary.errors == {"QueueFullError 429: busy": 1}
    assert summary.duration_s == 5.0
    assert (summary.requests_per_s, summary.output_tokens_per_s) == (0.4, 2.0)
    assert (summary.prompt_tokens, summary.completion_tokens) == (8, 10)
    assert summary.acceptance_rate == pytest.approx(1 / 3)
    assert summary.tokens_per_event == 2.0
    assert summary.max_lateness_s == 0.5
    assert summary.ttft_s is not None and summary.ttft_s.count == 2
    assert summary.itl_s is not None and summary.itl_s.count == 8
    assert summary.gap_s is not None and summary.gap_s.max == 4.0


def test_figures_of_nothing() -> None:
    failed = record(0, error="x", event_s=(), event_tokens=())
    for records in ([], [failed]):
        summary = summarise(records, 0.0)
        assert summary.output_tokens_per_s == 0 and summary.ttft_s is None
        assert summary.acceptance_rate is None and summary.tokens_per_event is None

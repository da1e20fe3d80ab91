"""A served model's metrics against what its client counted."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support.client_ledger import Choice, ClientLedger
from support.live_server import wait_until
from support.programs import program
from support.served_process import CONTEXT, NUM_LAYERS, ServedProcess, serving, write_packed_model

Metrics = dict[tuple[str, ...], float]

PLAIN: dict[str, Any] = {"ignore_eos": True, "speculative": False}


def drafting(**options: Any) -> dict[str, Any]:
    return {"ignore_eos": True, "speculative": options}


REQUESTS: tuple[dict[str, Any], ...] = (
    PLAIN | {"prompt": "The quick brown fox jumps over the lazy dog", "max_tokens": 30},
    PLAIN | {"prompt": "The quick brown fox jumps over the lazy dog", "max_tokens": 5},
    PLAIN | {"prompt": "two at once", "n": 2, "exit_layer": 3, "max_tokens": 10},
    PLAIN | {"prompt": "not so deep", "max_tokens": 7, "exit_layer": 5},
    drafting(exit_layer=2, num_speculations=4) | {"prompt": "Once upon a time", "max_tokens": 60},
    drafting(exit_layer=1, num_speculations=3)
    | {"prompt": "A story", "exit_layer": 4, "max_tokens": 25},
    drafting(method="ngram", num_speculations=3)
    | {"prompt": "la la la la la la", "max_tokens": 40, "temperature": 0},
    PLAIN | {"prompt": "It ends early", "max_tokens": 200, "temperature": 0, "stop": ["a", "e"]},
)


@dataclass(frozen=True)
class Counted:
    """A server's metrics, and its only client's own counts."""

    ledger: ClientLedger
    metrics: Metrics
    text: str

    def series(self, name: str, *labels: str) -> Counter[Any]:
        """The samples of a metric that are not 0, by the values of these labels."""
        found: Counter[Any] = Counter()
        amount: Any  # A Counter's values pass for whole numbers; seconds are not.
        for (sample, *pairs), amount in self.metrics.items():
            if sample == name and amount:
                given = dict(pair.split("=", 1) for pair in pairs)
                key = tuple(_number(given[label]) for label in labels)
                found[key if len(key) > 1 else key[0] if key else ()] += amount
        return found

    def total(self, name: str) -> float:
        return self.series(name).total()

    def choices(self, keep: Callable[[Choice], bool]) -> list[Choice]:
        return [choice for choice in self.ledger.choices if keep(choice)]


def _number(label: str) -> int | str:
    return int(label) if label.isdigit() else label


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    folder = tmp_path_factory.mktemp("counts")
    with serving(write_packed_model(folder / "tiny"), folder / "log") as running:
        yield running


@pytest.fixture(scope="module")
def counted(served: ServedProcess) -> Counted:
    """One request after the other, so that each sweep can be told from the answers."""
    ledger = ClientLedger(served.http)
    for request in REQUESTS:
        ledger.stream(**request)
    return Counted(ledger, served.metrics(), served.http.get("/metrics").text)


def test_tokens(counted: Counted) -> None:
    ledger = counted.ledger
    assert counted.total("bitskip_prompt_tokens_total") == ledger.prompt_tokens
    generated = counted.series("bitskip_generation_tokens_total", "exit_layer", "source")
    assert generated == ledger.tokens
    assert {source for _, source in generated} == {"plain", "draft", "corrected", "bonus"}
    assert {exit_layer for exit_layer, _ in generated} == {3, 4, 5, 6}


def test_ends_and_lengths(counted: Counted) -> None:
    ledger = counted.ledger
    reasons = counted.series("bitskip_request_success_total", "finished_reason")
    assert reasons == ledger.finish_reasons
    assert set(reasons) == {"stop", "length"}
    for name, lengths in (
        ("prompt", [choice.prompt_tokens for choice in ledger.choices]),
        ("generation", [choice.num_tokens for choice in ledger.choices]),
    ):
        histogram = f"bitskip_request_{name}_tokens"
        assert counted.total(f"{histogram}_count") == len(lengths)
        assert counted.total(f"{histogram}_sum") == sum(lengths)
        for (sample, *labels), value in counted.metrics.items():
            if sample == f"{histogram}_bucket":
                limit = float(labels[0].removeprefix("le="))
                assert value == sum(length <= limit for length in lengths)


def test_drafts(counted: Counted) -> None:
    ledger = counted.ledger
    for figure in ("num_drafts", "num_draft_tokens", "num_accepted_tokens"):
        name = f"spec_decode_{figure}_total"
        by_depth = counted.series(f"bitskip_{name}", "exit_layer")
        assert by_depth == ledger.drafts(figure), figure
        assert set(by_depth) == {0, 1, 2}
        assert counted.total(f"vllm:{name}") == by_depth.total()
    per_pos = "spec_decode_num_accepted_tokens_per_pos_total"
    accepted = +ledger.accepted_at
    assert counted.series(f"bitskip_{per_pos}", "exit_layer", "position") == accepted
    regardless = Counter[int]()
    for (_, position), number in accepted.items():
        regardless[position] += number
    assert counted.series(f"vllm:{per_pos}", "position") == regardless
    lengths = "bitskip_accepted_length"
    assert counted.series(f"{lengths}_count", "exit_layer") == ledger.drafts("num_drafts")
    assert counted.series(f"{lengths}_sum", "exit_layer") == ledger.drafts("num_accepted_tokens")


def test_moving_gauges_lie_between_what_was_seen(counted: Counted) -> None:
    for depth, num_tokens in counted.ledger.drafts("num_draft_tokens").items():
        rate = counted.series("bitskip_spec_acceptance_rate", "exit_layer")[depth]
        overall = counted.ledger.drafts("num_accepted_tokens")[depth] / num_tokens
        # So few drafts weigh almost alike.
        assert rate == pytest.approx(overall, abs=0.1)
    assert 1 <= counted.total("bitskip_spec_draft_length") <= 4


def test_sweeps(counted: Counted) -> None:
    """Alone, a choice's rows follow from its tokens: a draft of γ takes γ rows and γ + 1 more."""
    passes = counted.series("bitskip_pass_seconds_count", "phase", "exit_layer")
    expected: Counter[tuple[str, int]] = Counter()
    num_rows = 0
    for choice in counted.choices(lambda choice: choice.exit_layer != 3):
        num_rounds = choice.num_tokens - 1  # The prompt's sweep brought the first token.
        if (speculation := choice.speculation) is not None:
            assert choice.draft_depth is not None
            num_drafts, num_draft_tokens = (
                speculation["num_drafts"],
                speculation["num_draft_tokens"],
            )
            num_rounds -= speculation["num_accepted_tokens"] + num_drafts
            expected["verify", choice.exit_layer] += num_drafts
            num_rows += num_draft_tokens + num_drafts
            if choice.draft_depth:
                expected["draft", choice.draft_depth] += num_draft_tokens
                num_rows += num_draft_tokens
        expected["decode", choice.exit_layer] += num_rounds
        num_rows += num_rounds
    for phase in ("draft", "verify", "decode"):
        seen = {key: n for key, n in passes.items() if key[0] == phase and key[1] != 3}
        assert seen == {key: n for key, n in expected.items() if key[0] == phase and n}, phase
    # The pair shares sweeps; it may have begun apart.
    pair = counted.choices(lambda choice: choice.exit_layer == 3)
    num_rows += sum(choice.num_tokens - 1 for choice in pair)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in counted.ledger.usages)
    read = sum(choice.prompt_tokens for choice in counted.ledger.choices)
    hits = counted.total("bitskip_prefix_cache_hits_total")
    assert counted.total("bitskip_sweep_rows_sum") == num_rows + read - hits
    assert counted.total("bitskip_sweep_rows_count") == passes.total()
    assert hits >= cached > 0
    assert passes.total() == counted.total("bitskip_pass_seconds_count")


def test_prefix_cache(counted: Counted) -> None:
    choices = counted.ledger.choices
    looked_up = counted.total("bitskip_prefix_cache_queries_total")
    # The last token of a prompt is always computed.
    assert looked_up == sum(choice.prompt_tokens - 1 for choice in choices)


def test_durations(counted: Counted) -> None:
    """Per exit and kind: each choice once, and the sums are those that the answers told."""
    kind = ("exit_layer", "speculative")

    def of(name: str) -> Counter[Any]:
        return counted.series(f"bitskip_{name}", *kind)

    def summed(figure: Callable[[Choice], float]) -> dict[Any, float]:
        sums: dict[Any, float] = {}
        for choice in counted.ledger.choices:
            key = choice.exit_layer, "true" if choice.speculation else "false"
            sums[key] = sums.get(key, 0.0) + figure(choice)
        return sums

    numbers = summed(lambda _: 1)
    durations = ("request_e2e", "request_queue", "request_prefill", "request_decode")
    for name in ("time_to_first_token", *durations):
        assert of(f"{name}_seconds_count") == numbers, name
    ttft = summed(lambda choice: choice.metrics["time_to_first_token_ms"] / 1000)
    assert of("time_to_first_token_seconds_sum") == pytest.approx(ttft)
    queue, prefill = of("request_queue_seconds_sum"), of("request_prefill_seconds_sum")
    assert queue + prefill == pytest.approx(ttft)
    assert queue == pytest.approx(summed(lambda c: c.metrics["queue_time_ms"] / 1000))
    until_last = summed(lambda choice: choice.metrics["generation_time_ms"] / 1000)
    decode = of("request_decode_seconds_sum")
    assert decode == pytest.approx({key: until_last[key] - ttft[key] for key in ttft})
    for key, seconds in of("request_e2e_seconds_sum").items():
        assert until_last[key] <= seconds < until_last[key] + 1


def test_intervals_between_tokens(counted: Counted) -> None:
    """Once per token after a choice's first, and together the time from its first to its last."""
    latency = "bitskip_inter_token_latency_seconds"
    by_exit = counted.series(f"{latency}_count", "exit_layer")
    expected: Counter[int] = Counter()
    for choice in counted.ledger.choices:
        expected[choice.exit_layer] += choice.num_tokens - 1
    assert by_exit == expected
    decode = counted.series("bitskip_request_decode_seconds_sum", "exit_layer")
    assert counted.series(f"{latency}_sum", "exit_layer") == pytest.approx(decode)


def test_one_name_labels_everything_and_no_value_is_the_clients(counted: Counted) -> None:
    lines = [line for line in counted.text.splitlines() if not line.startswith("#")]
    assert len(lines) > 500
    assert all('model_name="tiny"' in line for line in lines)
    assert "_created" not in counted.text
    exits = {int(value) for value in re.findall(r'exit_layer="(\d+)"', counted.text)}
    assert exits <= set(range(NUM_LAYERS + 1))


def test_promtool_finds_nothing_on_our_names(counted: Counted) -> None:
    """It dislikes the colon of vLLM's names, which are not ours to choose."""
    done = subprocess.run(
        [program("promtool", "prometheus"), "check", "metrics"],
        input=counted.text,
        capture_output=True,
        text=True,
        check=False,
    )
    findings = (done.stdout + done.stderr).splitlines()
    assert {line.partition(":")[0] for line in findings} == {"vllm"}
    assert len(findings) == 4
    assert all("should not contain ':'" in line for line in findings)


def test_refusals_and_departures(served: ServedProcess, counted: Counted) -> None:
    """After `counted`, whose counts they would change."""
    ledger = ClientLedger(served.http)
    ledger.refuse(prompt=5)
    ledger.refuse(prompt="x", speculative={"exit_layer": NUM_LAYERS + 1})
    ledger.refuse(prompt="x", max_tokens=CONTEXT)
    ledger.refuse(prompt="x", model="nobody's")
    ledger.leave(prompt="x", max_tokens=CONTEXT - 8, **PLAIN)
    ended = "bitskip_request_success_total"
    wait_until(lambda: served.metric(ended, finished_reason="abort") == 1)
    metrics = Counted(ledger, served.metrics(), "")
    refused = metrics.series("bitskip_request_rejected_total", "reason")
    codes = {code: number for code, number in ledger.refusals.items() if code is not None}
    assert codes == {"context_length_exceeded": 1, "model_not_found": 1}
    assert refused == codes | {"invalid_request": ledger.refusals[None]}
    assert metrics.series(ended, "finished_reason")["error"] == 0
    assert "nobody's" not in served.http.get("/metrics").text

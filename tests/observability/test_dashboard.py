"""The dashboard's queries in a real Prometheus that scrapes a real server under load.

Prometheus' `rate` extrapolates to the ends of its window. Here the window ends at one scrape
and begins at another, so that it counts exactly, and what the panels show can be held against
what the clients counted themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.metrics import REQUEST_BUCKETS, STEP_BUCKETS, TOKEN_BUCKETS
from support.client_ledger import Choice, ClientLedger
from support.live_server import wait_until
from support.programs import program
from support.prometheus import (
    SCRAPE_INTERVAL_S,
    PanelQuery,
    Prometheus,
    Series,
    dashboard_queries,
    prometheus_scraping,
)
from support.served_process import ServedProcess, serving, write_packed_model

MAX_RUNNING, NUM_CLIENTS = 4, 6
LEAVERS_EXIT = 5
"""Nobody else asks for this exit: what a client that leaves was sent, it cannot know."""
LEAVERS_PROMPT = "I will not stay to the end"
KINDS: tuple[dict[str, Any], ...] = (
    {"speculative": False},
    {"speculative": False, "exit_layer": 3},
    {"speculative": {"exit_layer": 2, "num_speculations": 4}},
    {"speculative": {"exit_layer": 1, "num_speculations": 3}, "exit_layer": 4},
    {"speculative": {"method": "ngram", "num_speculations": 3}, "temperature": 0},
)
PROMPT = " says: once upon a time there was a server that told the same stories again. " * 2
ANSWER_LENGTH = 160
CACHE_TOKENS = 512
"""Four such answers do not fit: somebody is preempted."""


def leave(served: ServedProcess) -> None:
    body = {"prompt": LEAVERS_PROMPT, "exit_layer": LEAVERS_EXIT, "logprobs": 5}
    ended = served.metric("bitskip_request_success_total", finished_reason="abort")
    ClientLedger(served.http).leave(**body, max_tokens=480, ignore_eos=True, speculative=False)
    wait_until(
        lambda: served.metric("bitskip_request_success_total", finished_reason="abort") > ended
    )


def put_load_on(served: ServedProcess) -> ClientLedger:
    """Everything that the dashboard shows, but engine failures."""
    ledger = ClientLedger(served.http)

    def client(number: int) -> ClientLedger:
        prompt = f"{number}{PROMPT}"  # Its own, but the same each time: the prefix cache has it.
        with httpx.Client(base_url=served.url, timeout=60) as http:
            own = ClientLedger(http)
            for turn in range(3 * len(KINDS)):
                kind = KINDS[(number + turn) % len(KINDS)]
                own.stream(prompt=prompt, max_tokens=ANSWER_LENGTH, ignore_eos=True, **kind)
            own.stream(prompt="It stops", seed=number, stop=["a", "e"], max_tokens=50, **KINDS[0])
            return own

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        for own in clients.map(client, range(NUM_CLIENTS)):
            ledger.add(own)
    for kind in KINDS:  # Alone: every phase is seen, not only mixed sweeps.
        ledger.stream(prompt="alone", max_tokens=20, ignore_eos=True, **kind)
    leave(served)
    for _ in range(3):
        ledger.refuse(prompt=7)
    ledger.refuse(prompt="x", max_tokens=10**6)
    ledger.refuse(prompt="x", model="another")
    return ledger


@dataclass(frozen=True)
class Load:
    """What was put on the server, between two scrapes."""

    ledger: ClientLedger
    leavers_prompt_tokens: int
    prometheus: Prometheus
    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def queries(self) -> list[PanelQuery]:
        # From Prometheus 3 on a window does not hold its own beginning.
        return dashboard_queries(self.length_s + 0.001)

    def shown(self, panel: str) -> dict[str, float]:
        """Legend → value at the end of the load; NaN (nothing was there to divide) left out."""
        values: dict[str, float] = {}
        for query in self.queries:
            if query.panel == panel:
                for labels, value in self.prometheus.query(query.expr, self.end_s).items():
                    if not math.isnan(value):
                        values[query.name(dict(labels))] = value
        print(f"{panel}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        return values

    def counted(self, panel: str) -> Counter[str]:
        """Legend → how often it happened during the load, of a panel that shows rates."""
        per_second = self.shown(panel)
        counts: Counter[str] = Counter()
        for name, rate in per_second.items():
            number = round(rate * self.length_s)
            assert rate * self.length_s == pytest.approx(number, rel=1e-3, abs=1e-3), name
            counts[name] = number
        print("  in all: " + ", ".join(f"{name} {number}" for name, number in counts.items()))
        return +counts

    def over_time(self, query: PanelQuery) -> list[Series]:
        """Its series during the load, at the very end too: what is counted last shows there."""
        num_steps = int(self.length_s / SCRAPE_INTERVAL_S)
        start_s = self.end_s - num_steps * SCRAPE_INTERVAL_S
        return self.prometheus.query_range(query.expr, start_s, self.end_s)

    def highest(self, panel: str) -> dict[str, float]:
        """Legend → the largest value during the load."""
        return {
            query.name(series.labels): max(value for _, value in series.samples)
            for query in self.queries
            if query.panel == panel
            for series in self.over_time(query)
        }


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    binary = program("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("dashboard")
    limits = ("--max-num-seqs", str(MAX_RUNNING), "--kv-cache-tokens", str(CACHE_TOKENS))
    options = (*limits, "--max-model-len", str(CACHE_TOKENS), "--log-level", "warning")
    model = write_packed_model(folder / "tiny")
    with (
        serving(model, folder / "server.log", *options) as served,
        prometheus_scraping(binary, served.url, folder) as prometheus,
    ):
        # Each kind once: its series are there when the window begins.
        leave(served)
        (whole,) = ClientLedger(served.http).stream(prompt=LEAVERS_PROMPT, max_tokens=1)
        for kind in KINDS:
            ClientLedger(served.http).stream(prompt="warm", max_tokens=30, ignore_eos=True, **kind)
        start_s = prometheus.next_scrape()
        ledger = put_load_on(served)
        yield Load(ledger, whole.prompt_tokens, prometheus, start_s, prometheus.next_scrape())


def quantile(share: float, values: Sequence[float], bounds: Sequence[float]) -> float:
    """Prometheus' `histogram_quantile` over these values, observed with these buckets."""
    rank = share * len(values)
    edges = [0.0, *bounds]
    for lower, upper in pairwise(edges):
        below = sum(value <= lower for value in values) if lower else 0
        inside = sum(value <= upper for value in values) - below
        if below + inside >= rank:
            return lower + (upper - lower) * (rank - below) / inside
    return edges[-1]


def check_quantiles(
    shown: dict[str, float],
    values_of: dict[str, list[float]],
    bounds: Sequence[float],
) -> None:
    """Each series named "PREFIX pNN" shows that quantile of `values_of[PREFIX]`."""
    for prefix, values in values_of.items():
        for share in (0.5, 0.95, 0.99):
            name = f"{prefix} p{share * 100:.0f}"
            if name in shown:
                expected = quantile(share, values, bounds)
                assert shown[name] == pytest.approx(expected, rel=0.01), name
    assert {name.rpartition(" ")[0] for name in shown} >= set(values_of)


def by_exit(
    ledger: ClientLedger, figure: Callable[[Choice], float], name: str = "exit {}"
) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for choice in ledger.choices:
        values.setdefault(name.format(choice.exit_layer), []).append(figure(choice))
    return values


def test_every_query_shows_something(load: Load) -> None:
    for query in load.queries:
        series = load.over_time(query)
        assert any(value > 0 for one in series for _, value in one.samples), query


def test_numbers_of_now(load: Load) -> None:
    ledger = load.ledger
    leavers = load.counted("Tokens by exit layer")[f"exit {LEAVERS_EXIT}"]
    tokens = load.counted("Tokens per second")
    assert tokens.total() == ledger.tokens.total() + leavers
    assert load.counted("Requests per second").total() == len(ledger.choices) + 1
    assert load.counted("Refused or failed per second").total() == ledger.refusals.total()
    (accepted,) = load.shown("Drafts accepted").values()
    drafted = ledger.drafts("num_draft_tokens").total()
    assert accepted == pytest.approx(ledger.drafts("num_accepted_tokens").total() / drafted)
    (first,) = load.shown("First token, p95").values()
    known = [choice.metrics["time_to_first_token_ms"] / 1000 for choice in ledger.choices]
    # The leaver's is not known: it may have been the shortest, or the longest.
    least = quantile(0.95, [*known, 0.0], REQUEST_BUCKETS)
    most = quantile(0.95, [*known, known[0] + max(known)], REQUEST_BUCKETS)
    assert least * 0.99 <= first <= most * 1.01
    (between,) = load.shown("Between tokens, p95").values()
    assert 0 < between < max(STEP_BUCKETS)


def test_latency_by_exit(load: Load) -> None:
    ledger = load.ledger
    leaver = f"exit {LEAVERS_EXIT} "
    shown = load.shown("Time to first token")
    first = by_exit(ledger, lambda choice: choice.metrics["time_to_first_token_ms"] / 1000)
    assert set(first) == {"exit 3", "exit 4", "exit 6"}
    check_quantiles(shown, first, REQUEST_BUCKETS)
    whole = load.shown("Whole request")
    for name, times in by_exit(ledger, lambda c: c.metrics["generation_time_ms"] / 1000).items():
        assert quantile(0.5, times, REQUEST_BUCKETS) * 0.9 <= whole[f"{name} p50"]
        assert whole[f"{name} p50"] <= whole[f"{name} p95"] <= whole[f"{name} p99"]
    parts = load.shown("Where a request's time goes")
    for name, queues in by_exit(ledger, lambda c: c.metrics["queue_time_ms"] / 1000).items():
        assert parts[f"{name} queue"] == pytest.approx(sum(queues) / len(queues), rel=0.01)
        mean_first = sum(first[name]) / len(first[name])
        queue_and_prefill = parts[f"{name} queue"] + parts[f"{name} prefill"]
        assert queue_and_prefill == pytest.approx(mean_first, rel=0.01)
        assert parts[f"{name} decode"] > 0
    intervals = load.shown("Time between tokens")
    drafted = load.shown("Time between tokens, drafted or not")
    assert {"exit 6, drafted: true", "exit 6, drafted: false"} <= set(drafted)
    for name, value in (*intervals.items(), *drafted.items()):
        assert name.startswith(leaver) or 0 < value < max(STEP_BUCKETS), name


def test_passes(load: Load) -> None:
    phases = {"draft to 1", "draft to 2", "verify to 6", "decode to 6", "prefill to 6"}
    for panel in ("Pass time by phase and exit, median", "Pass time by phase and exit, p95"):
        times = load.shown(panel)
        assert phases <= set(times)
        assert all(0 < value < max(STEP_BUCKETS) for value in times.values())
    busy = load.shown("Share of time in passes")
    assert {"draft", "verify", "decode", "mixed"} <= set(busy)
    assert 0 < sum(busy.values()) <= 1
    assert phases <= {name for name, rate in load.shown("Passes per second").items() if rate}
    rows = load.shown("Rows per sweep")
    assert 1 <= rows["mean"] <= rows["p95"]


def test_speculation(load: Load) -> None:
    ledger = load.ledger
    drafts, draft_tokens = ledger.drafts("num_drafts"), ledger.drafts("num_draft_tokens")
    accepted = ledger.drafts("num_accepted_tokens")
    assert set(drafts) == {0, 1, 2}
    by_position = load.shown("Acceptance by position")
    for (depth, position), number in (+ledger.accepted_at).items():
        shown = by_position.pop(f"depth {depth}, position {position}")
        assert shown == pytest.approx(number / drafts[depth])
    assert by_position == {}
    by_depth = load.shown("Acceptance by draft depth")
    per_verification = load.shown("Tokens per verification")
    lengths = load.shown("Draft length")
    assert 0 < lengths.pop("chosen") <= 4
    for depth, number in drafts.items():
        name = f"depth {depth}"
        assert by_depth[name] == pytest.approx(accepted[depth] / draft_tokens[depth])
        assert per_verification[name] == pytest.approx(1 + accepted[depth] / number)
        assert lengths[f"verified, {name}"] == pytest.approx(draft_tokens[depth] / number)


def test_tokens(load: Load) -> None:
    ledger = load.ledger
    by_exit, by_source = Counter[str](), Counter[str]()
    for (exit_layer, source), number in ledger.tokens.items():
        by_exit[f"exit {exit_layer}"] += number
        by_source[source] += number
    shown = load.counted("Tokens by exit layer")
    leavers = shown.pop(f"exit {LEAVERS_EXIT}")
    assert leavers > 0
    assert shown == by_exit
    assert load.counted("Tokens by source") == by_source + Counter(plain=leavers)
    both = load.counted("Prompt and generated tokens")
    assert both["generated"] == by_exit.total() + leavers
    assert both["prompt"] == ledger.prompt_tokens + load.leavers_prompt_tokens
    lengths = load.shown("Lengths of requests")
    prompts = [float(choice.prompt_tokens) for choice in ledger.choices]
    answers = [float(choice.num_tokens) for choice in ledger.choices]
    prompts.append(float(load.leavers_prompt_tokens))
    answers.append(float(leavers))
    check_quantiles(lengths, {"prompt": prompts, "generation": answers}, TOKEN_BUCKETS)


def test_load(load: Load) -> None:
    requests = load.highest("Running and waiting")
    assert 1 <= requests["running"] <= MAX_RUNNING
    assert 1 <= requests["waiting"] <= NUM_CLIENTS
    assert load.shown("Running and waiting") == {"running": 0, "waiting": 0}
    assert 0 < load.highest("K/V cache in use")["in use"] <= 1
    (hits,) = load.shown("Prefix cache hits").values()
    assert 0 < hits < 1
    assert load.counted("Preemptions").total() > 0


def test_outcomes(load: Load) -> None:
    ended = load.counted("Ended, by reason")
    assert ended == load.ledger.finish_reasons + Counter(abort=1)
    assert set(ended) == {"length", "stop", "abort"}
    refused = load.counted("Refused, by reason")
    assert refused == Counter(invalid_request=3, context_length_exceeded=1, model_not_found=1)


def test_every_panel_is_held_against_something(load: Load) -> None:
    """A panel that is added to the dashboard gets a check here."""
    checks = Path(__file__).read_text(encoding="utf-8")
    assert [query.panel for query in load.queries if f'"{query.panel}"' not in checks] == []


def test_prometheus_takes_the_rules(load: Load) -> None:
    groups = load.prometheus.api("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 14
    wait_until(lambda: load.prometheus.query("model_exit:bitskip_draft_acceptance:ratio5m"))
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}

"""The Prometheus exporter: the engine's step statistics as time series.

Names, labels and buckets are a contract with dashboards; `_total` comes from the client
library, `_created` series are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.config import MAX_SPECULATIONS, ModelConfig
from engine.metrics import DraftStats, FinishedStats, StepStats
from engine.types import FinishReason, TokenSource
from server.errors import REJECTION_REASONS
from server.version import package_version

STEP_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5),
)
"""Seconds; for intervals between tokens and for passes."""
REQUEST_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
"""Seconds; for the parts of a request."""
TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
ACCEPTED_BUCKETS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16)

M = TypeVar("M", Counter, Gauge, Histogram)

MOVING_DECAY = 0.99
"""What a draft leaves of the weight of those before it: about the last hundred count."""


class MovingRatio:
    """A ratio of sums in which older terms weigh ever less."""

    def __init__(self) -> None:
        self._numerator = 0.0
        self._denominator = 0.0

    def add(self, numerator: float, denominator: float) -> float:
        """Add a term; returns the ratio. The first term's denominator must be positive."""
        self._numerator = MOVING_DECAY * self._numerator + numerator
        self._denominator = MOVING_DECAY * self._denominator + denominator
        return self._numerator / self._denominator


class _Bound(Generic[M]):
    """A metric whose `model_name` is settled; call it with the other labels' values."""

    def __init__(self, metric: M, model_name: str) -> None:
        self._metric = metric
        self._model_name = model_name

    def __call__(self, *labels: object) -> M:
        return self._metric.labels(self._model_name, *labels)


class _Series:
    """Makes series that carry `model_name`, the exporter's one constant label."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry = registry
        self._model_name = model_name

    def counter(self, name: str, help_text: str, *labels: str) -> _Bound[Counter]:
        metric = Counter(name, help_text, ("model_name", *labels), registry=self._registry)
        return _Bound(metric, self._model_name)

    def gauge(self, name: str, help_text: str, *labels: str) -> _Bound[Gauge]:
        metric = Gauge(name, help_text, ("model_name", *labels), registry=self._registry)
        return _Bound(metric, self._model_name)

    def histogram(
        self, name: str, help_text: str, buckets: Iterable[float], *labels: str
    ) -> _Bound[Histogram]:
        metric = Histogram(
            name,
            help_text,
            ("model_name", *labels),
            buckets=tuple(buckets),
            registry=self._registry,
        )
        return _Bound(metric, self._model_name)


class _WithoutCreated:
    """A collector's metrics less the `_created` samples.

    The client library can only turn those off for the whole process.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


class _SpeculationCounters:
    """The four counters of speculation, under one prefix, with or without the draft depth."""

    def __init__(self, series: _Series, prefix: str, *labels: str) -> None:
        self._has_depth = bool(labels)
        self.drafts = series.counter(f"{prefix}num_drafts", "Drafts that were verified.", *labels)
        self.draft_tokens = series.counter(
            f"{prefix}num_draft_tokens", "Tokens that were drafted and verified.", *labels
        )
        self.accepted_tokens = series.counter(
            f"{prefix}num_accepted_tokens", "Drafted tokens that verification accepted.", *labels
        )
        self.accepted_per_pos = series.counter(
            f"{prefix}num_accepted_tokens_per_pos",
            "Accepted draft tokens by their position in the draft, from 0.",
            *labels,
            "position",
        )

    def _labels(self, depth: int) -> tuple[int, ...]:
        return (depth,) if self._has_depth else ()

    def begin_at_zero(self, depth: int) -> None:
        labels = self._labels(depth)
        for counter in (self.drafts, self.draft_tokens, self.accepted_tokens):
            counter(*labels)
        for position in range(MAX_SPECULATIONS):
            self.accepted_per_pos(*labels, position)

    def count(self, draft: DraftStats) -> None:
        labels = self._labels(draft.draft_exit_layer)
        self.drafts(*labels).inc()
        self.draft_tokens(*labels).inc(draft.num_draft_tokens)
        self.accepted_tokens(*labels).inc(draft.num_accepted_tokens)
        for position in range(draft.num_accepted_tokens):
            self.accepted_per_pos(*labels, position).inc()


class MetricsExporter:
    """Turns `StepStats` into Prometheus series in `registry`.

    Not thread-safe: `observe` and `render` belong on the event loop.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        model_name: str,
        vllm_names: bool = True,
    ) -> None:
        self._registry = registry
        series = _Series(registry, model_name)
        self._make_request_series(series)
        self._make_step_series(series)
        self._speculation = [_SpeculationCounters(series, "bitskip_spec_decode_", "exit_layer")]
        if vllm_names:
            self._speculation.append(_SpeculationCounters(series, "vllm:spec_decode_"))
        self._acceptance: dict[int, MovingRatio] = {}
        self._draft_length = MovingRatio()
        self._model_info = series.gauge(
            "bitskip_model_info",
            "The model being served.",
            *("variant", "num_layers", "backend", "head_dtype"),
        )
        series.gauge("bitskip_build_info", "This server's version.", "version")(
            package_version()
        ).set(1)
        self._begin_at_zero()

    def describe_model(
        self,
        model: ModelConfig,
        *,
        backend_name: str,
        head_dtype: str,
        draft_exit_layer: int | None,
    ) -> None:
        """Say which model is served; `draft_exit_layer` drafts where no request says otherwise.

        What ordinary requests will count is shown from now on, as 0: a series that appears with
        its first event hides that event from `rate` and `increase`. Other depths are left to
        appear, since a series for each would be thousands.
        """
        depth = model.num_layers
        self._model_info(model.variant, depth, backend_name, head_dtype).set(1)
        durations = (self._ttft, self._e2e, self._queue, self._prefill, self._decode)
        for histogram in (*durations, self._itl):
            for is_speculative in (True, False):
                histogram(depth, _flag(is_speculative))
        for phase in ("verify", "decode", "prefill", "mixed"):
            self._passes(phase, depth)
        for source in TokenSource:
            self._generated(depth, source.value)
        for draft_depth in {0, draft_exit_layer} - {None}:
            self._accepted(draft_depth)
            for counters in self._speculation:
                counters.begin_at_zero(draft_depth)
        if draft_exit_layer is not None:
            self._passes("draft", draft_exit_layer)

    def _make_request_series(self, series: _Series) -> None:
        kind = ("exit_layer", "speculative")

        def duration(name: str, help_text: str) -> _Bound[Histogram]:
            return series.histogram(f"bitskip_{name}_seconds", help_text, REQUEST_BUCKETS, *kind)

        self._ttft = duration("time_to_first_token", "From arrival to the first token.")
        self._e2e = duration("request_e2e", "From arrival to the end.")
        self._queue = duration("request_queue", "From arrival to admission.")
        self._prefill = duration("request_prefill", "From admission to the first token.")
        self._decode = duration("request_decode", "From the first token to the last.")
        self._itl = series.histogram(
            "bitskip_inter_token_latency_seconds",
            "Time between tokens: a step's interval divided by the tokens that it gave.",
            STEP_BUCKETS,
            *kind,
        )
        self._prompt_lengths = series.histogram(
            "bitskip_request_prompt_tokens", "Prompt tokens of a finished choice.", TOKEN_BUCKETS
        )
        self._generation_lengths = series.histogram(
            "bitskip_request_generation_tokens",
            "Tokens generated for a finished choice.",
            TOKEN_BUCKETS,
        )
        self._success = series.counter(
            "bitskip_request_success", "Choices that ended, by why.", "finished_reason"
        )
        self._rejected = series.counter(
            "bitskip_request_rejected", "Requests refused before they began.", "reason"
        )

    def _make_step_series(self, series: _Series) -> None:
        self._passes = series.histogram(
            "bitskip_pass_seconds",
            "A sweep and its head, by the depth of its deepest row.",
            STEP_BUCKETS,
            *("phase", "exit_layer"),
        )
        self._rows = series.histogram("bitskip_sweep_rows", "Rows of a sweep.", ROW_BUCKETS)
        self._accepted = series.histogram(
            "bitskip_accepted_length",
            "Accepted tokens of a verified draft, by draft depth (0: n-grams).",
            ACCEPTED_BUCKETS,
            "exit_layer",
        )
        self._prompt_tokens = series.counter(
            "bitskip_prompt_tokens", "Tokens of admitted prompts, whatever their number of choices."
        )
        self._generated = series.counter(
            "bitskip_generation_tokens", "Tokens delivered.", "exit_layer", "source"
        )
        self._preemptions = series.counter("bitskip_preemptions", "Preempted choices.")
        self._prefix_queries = series.counter(
            "bitskip_prefix_cache_queries", "Tokens looked up in the prefix cache."
        )
        self._prefix_hits = series.counter(
            "bitskip_prefix_cache_hits", "Tokens found in the prefix cache."
        )
        self._running = series.gauge("bitskip_num_requests_running", "Choices being worked on.")
        self._waiting = series.gauge("bitskip_num_requests_waiting", "Choices in the queue.")
        self._kv_usage = series.gauge(
            "bitskip_kv_cache_usage_ratio", "Share of the K/V blocks in use, 0 to 1."
        )
        self._acceptance_rate = series.gauge(
            "bitskip_spec_acceptance_rate",
            "Accepted share of drafted tokens, moving, by draft depth (0: n-grams).",
            "exit_layer",
        )
        self._draft_length_gauge = series.gauge(
            "bitskip_spec_draft_length",
            "Drafts chosen per round and choice that may be drafted for, 0 included, moving.",
        )

    def _begin_at_zero(self) -> None:
        """Show what depends on no model: as `describe_model` does."""
        for metric in (
            *(self._rows, self._prompt_lengths, self._generation_lengths),
            *(self._prompt_tokens, self._preemptions, self._prefix_queries, self._prefix_hits),
            *(self._running, self._waiting, self._kv_usage, self._draft_length_gauge),
        ):
            metric()
        for finish_reason in FinishReason:
            self._success(finish_reason.value)
        for rejection_reason in REJECTION_REASONS:
            self._rejected(rejection_reason)

    def observe(self, stats: StepStats) -> None:
        """Count one engine step."""
        for item in stats.passes:
            self._passes(item.phase, item.exit_layer).observe(item.duration_s)
            self._rows().observe(item.num_rows)
        for draft in stats.drafts:
            self._observe_draft(draft)
        for length in stats.draft_lengths:
            self._draft_length_gauge().set(self._draft_length.add(length, 1))
        for interval in stats.intervals:
            histogram = self._itl(interval.exit_layer, _flag(interval.speculative))
            for _ in range(interval.num_tokens):
                histogram.observe(interval.interval_s / interval.num_tokens)
        for finished in stats.finished:
            self._observe_finished(finished)
        for (exit_layer, source), num_tokens in stats.generated.items():
            self._generated(exit_layer, source.value).inc(num_tokens)
        self._prompt_tokens().inc(stats.num_prompt_tokens)
        self._preemptions().inc(stats.num_preemptions)
        self._prefix_queries().inc(stats.num_prefix_queries)
        self._prefix_hits().inc(stats.num_prefix_hits)
        self._running().set(stats.num_running)
        self._waiting().set(stats.num_waiting)
        self._kv_usage().set(stats.kv_usage_ratio)

    def _observe_draft(self, draft: DraftStats) -> None:
        for counters in self._speculation:
            counters.count(draft)
        depth, num_draft, num_accepted = (
            draft.draft_exit_layer,
            draft.num_draft_tokens,
            draft.num_accepted_tokens,
        )
        self._accepted(depth).observe(num_accepted)
        if num_draft:
            rate = self._acceptance.setdefault(depth, MovingRatio()).add(num_accepted, num_draft)
            self._acceptance_rate(depth).set(rate)

    def _observe_finished(self, finished: FinishedStats) -> None:
        labels = (finished.exit_layer, _flag(finished.speculative))
        for histogram, duration_s in (
            (self._ttft, finished.time_to_first_token_s),
            (self._e2e, finished.e2e_s),
            (self._queue, finished.queue_s),
            (self._prefill, finished.prefill_s),
            (self._decode, finished.decode_s),
        ):
            if duration_s is not None:
                histogram(*labels).observe(duration_s)
        self._prompt_lengths().observe(finished.num_prompt_tokens)
        self._generation_lengths().observe(finished.num_generated_tokens)
        self._success(finished.reason.value).inc()

    def count_rejected(self, reason: str) -> None:
        """Count a request that was refused; `reason` must come from a bounded set."""
        self._rejected(reason).inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that `accept` prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(_WithoutCreated(self._registry)), content_type


def _flag(value: bool) -> str:
    return "true" if value else "false"

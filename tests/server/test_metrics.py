"""The Prometheus exposition, read by Prometheus' own parsers."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from engine.config import ModelConfig
from engine.errors import (
    BitSkipError,
    ContextLengthError,
    EngineUnavailableError,
    InvalidRequestError,
)
from engine.metrics import DraftStats, FinishedStats, IntervalStats, PassStats, StepStats
from engine.types import FinishReason, TokenSource
from server.errors import (
    ERROR_KINDS,
    REJECTION_REASONS,
    BodyTooLargeError,
    LimitError,
    ModelNotFoundError,
    QueueFullError,
    UnauthorizedError,
    rejection_reason,
)
from server.metrics import REQUEST_BUCKETS, STEP_BUCKETS, MetricsExporter

MODEL = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=128,
)

REQUEST_KIND = {"exit_layer", "speculative"}
HISTOGRAMS = {
    "bitskip_time_to_first_token_seconds": (REQUEST_KIND, REQUEST_BUCKETS),
    "bitskip_inter_token_latency_seconds": (REQUEST_KIND, STEP_BUCKETS),
    "bitskip_request_e2e_seconds": (REQUEST_KIND, REQUEST_BUCKETS),
    "bitskip_request_queue_seconds": (REQUEST_KIND, REQUEST_BUCKETS),
    "bitskip_request_prefill_seconds": (REQUEST_KIND, REQUEST_BUCKETS),
    "bitskip_request_decode_seconds": (REQUEST_KIND, REQUEST_BUCKETS),
    "bitskip_pass_seconds": ({"phase", "exit_layer"}, STEP_BUCKETS),
    "bitskip_request_prompt_tokens": (set(), None),
    "bitskip_request_generation_tokens": (set(), None),
    "bitskip_sweep_rows": (set(), None),
    "bitskip_accepted_length": ({"exit_layer"}, None),
}
COUNTERS = {
    "bitskip_prompt_tokens_total": set(),
    "bitskip_generation_tokens_total": {"exit_layer", "source"},
    "bitskip_request_success_total": {"finished_reason"},
    "bitskip_request_rejected_total": {"reason"},
    "bitskip_preemptions_total": set(),
    "bitskip_prefix_cache_queries_total": set(),
    "bitskip_prefix_cache_hits_total": set(),
    "bitskip_spec_decode_num_drafts_total": {"exit_layer"},
    "bitskip_spec_decode_num_draft_tokens_total": {"exit_layer"},
    "bitskip_spec_decode_num_accepted_tokens_total": {"exit_layer"},
    "bitskip_spec_decode_num_accepted_tokens_per_pos_total": {"exit_layer", "position"},
}
VLLM_COUNTERS = {
    "vllm:spec_decode_num_drafts_total": set(),
    "vllm:spec_decode_num_draft_tokens_total": set(),
    "vllm:spec_decode_num_accepted_tokens_total": set(),
    "vllm:spec_decode_num_accepted_tokens_per_pos_total": {"position"},
}
GAUGES = {
    "bitskip_num_requests_running": set(),
    "bitskip_num_requests_waiting": set(),
    "bitskip_kv_cache_usage_ratio": set(),
    "bitskip_spec_acceptance_rate": {"exit_layer"},
    "bitskip_spec_draft_length": set(),
    "bitskip_model_info": {"variant", "num_layers", "backend", "head_dtype"},
    "bitskip_build_info": {"version"},
}


def make_exporter(vllm_names: bool = True) -> MetricsExporter:
    exporter = MetricsExporter(CollectorRegistry(), model_name="tiny", vllm_names=vllm_names)
    exporter.describe_model(MODEL, backend_name="fake", head_dtype="int8", draft_exit_layer=2)
    return exporter


def full_step() -> StepStats:
    finished = FinishedStats(
        exit_layer=8,
        speculative=True,
        reason=FinishReason.STOP,
        num_prompt_tokens=12,
        num_generated_tokens=7,
        queue_s=0.002,
        time_to_first_token_s=0.02,
        prefill_s=0.018,
        decode_s=0.2,
        e2e_s=0.222,
    )
    return StepStats(
        passes=[PassStats("draft", 2, 3, 0.0015), PassStats("verify", 8, 9, 0.009)],
        drafts=[DraftStats(2, 4, 3), DraftStats(0, 2, 0)],
        draft_lengths=[4, 2, 0],
        intervals=[IntervalStats(8, True, 0.04, 4)],
        finished=[finished],
        generated={(8, TokenSource.DRAFT): 3, (8, TokenSource.CORRECTED): 1},
        num_prompt_tokens=12,
        num_preemptions=1,
        num_prefix_queries=12,
        num_prefix_hits=8,
        num_running=3,
        num_waiting=2,
        kv_usage_ratio=0.5,
    )


def samples(exporter: MetricsExporter) -> list[Sample]:
    body, _ = exporter.render("")
    families = text_string_to_metric_families(body.decode())
    return [sample for family in families for sample in family.samples]


def series_of(sample: Sample) -> tuple[str, frozenset[tuple[str, str]]]:
    return sample.name, frozenset(sample.labels.items())


def value(items: Iterable[Sample], name: str, **labels: str) -> float:
    found = [
        item.value for item in items if item.name == name and labels.items() <= item.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


@pytest.fixture
def exported() -> list[Sample]:
    exporter = make_exporter()
    exporter.observe(full_step())
    exporter.count_rejected("invalid_request")
    return samples(exporter)


def test_names_and_labels_are_the_contract(exported: list[Sample]) -> None:
    expected = {
        name: labels | {"model_name"}
        for name, labels in (COUNTERS | VLLM_COUNTERS | GAUGES).items()
    }
    for name, (labels, _) in HISTOGRAMS.items():
        expected[f"{name}_bucket"] = labels | {"model_name", "le"}
        expected[f"{name}_sum"] = expected[f"{name}_count"] = labels | {"model_name"}
    assert {sample.name: set(sample.labels) for sample in exported} == expected
    assert {sample.labels["model_name"] for sample in exported} == {"tiny"}


def test_buckets_are_the_contract(exported: list[Sample]) -> None:
    for name, (_, buckets) in HISTOGRAMS.items():
        if buckets is not None:
            bounds = {float(s.labels["le"]) for s in exported if s.name == f"{name}_bucket"}
            assert bounds == {*buckets, float("inf")}, name


def test_values(exported: list[Sample]) -> None:
    latency = "bitskip_inter_token_latency_seconds"
    drafted = {"exit_layer": "8", "speculative": "true"}
    assert value(exported, f"{latency}_count", **drafted) == 4
    assert value(exported, f"{latency}_sum", **drafted) == pytest.approx(0.04)
    assert value(exported, f"{latency}_bucket", le="0.01", **drafted) == 4
    assert value(exported, f"{latency}_bucket", le="0.0075", **drafted) == 0
    assert value(exported, f"{latency}_count", exit_layer="8", speculative="false") == 0
    assert value(exported, "bitskip_pass_seconds_sum", phase="verify", exit_layer="8") == 0.009
    assert value(exported, "bitskip_sweep_rows_sum") == 12
    assert value(exported, "bitskip_accepted_length_sum", exit_layer="2") == 3
    assert value(exported, "bitskip_accepted_length_count", exit_layer="0") == 1
    assert value(exported, "bitskip_request_success_total", finished_reason="stop") == 1
    assert value(exported, "bitskip_request_success_total", finished_reason="abort") == 0
    assert value(exported, "bitskip_generation_tokens_total", source="draft", exit_layer="8") == 3
    assert value(exported, "bitskip_prefix_cache_hits_total") == 8
    assert value(exported, "bitskip_preemptions_total") == 1
    per_pos = "spec_decode_num_accepted_tokens_per_pos_total"
    assert value(exported, f"bitskip_{per_pos}", exit_layer="2", position="2") == 1
    assert value(exported, f"vllm:{per_pos}", position="0") == 1
    assert value(exported, "vllm:spec_decode_num_drafts_total") == 2
    assert value(exported, "vllm:spec_decode_num_draft_tokens_total") == 6
    assert value(exported, "bitskip_spec_decode_num_draft_tokens_total", exit_layer="2") == 4
    assert value(exported, "bitskip_spec_acceptance_rate", exit_layer="2") == 0.75
    assert value(exported, "bitskip_spec_draft_length") == pytest.approx(2, abs=0.1)
    assert value(exported, "bitskip_num_requests_running") == 3
    assert value(exported, "bitskip_num_requests_waiting") == 2
    assert value(exported, "bitskip_kv_cache_usage_ratio") == 0.5
    assert (
        value(exported, "bitskip_model_info", num_layers="8", head_dtype="int8", variant="v1") == 1
    )


def test_the_moving_rate_follows_the_present() -> None:
    exporter = make_exporter()
    for num_accepted in [4] * 300 + [0] * 300:
        exporter.observe(StepStats(drafts=[DraftStats(2, 4, num_accepted)]))
    assert value(samples(exporter), "bitskip_spec_acceptance_rate") < 0.1


def test_ordinary_requests_make_no_new_series() -> None:
    """A series that appears with its first event hides that event from `rate`."""
    exporter = make_exporter()
    idle = samples(exporter)
    info = {"bitskip_model_info", "bitskip_build_info"}
    assert {sample.value for sample in idle if sample.name not in info} == {0}
    exporter.observe(full_step())
    for reason in REJECTION_REASONS:
        exporter.count_rejected(reason)
    measured = {"bitskip_spec_acceptance_rate"}  # No rate is true before the first draft.
    appeared = {series_of(s) for s in samples(exporter)} - {series_of(s) for s in idle}
    assert {name for name, _ in appeared} == measured


def test_every_error_has_a_reason_of_the_bounded_set() -> None:
    errors: list[Exception] = [
        InvalidRequestError("no", code="whatever the client sent"),
        ModelNotFoundError("x"),
        ContextLengthError("too long"),
        UnauthorizedError("no key"),
        BodyTooLargeError(10),
        LimitError("too many"),
        QueueFullError("later", retry_after_s=1),
        *(
            cls("no")
            for cls in ERROR_KINDS
            if issubclass(cls, EngineUnavailableError) and cls is not QueueFullError
        ),
        BitSkipError("broken"),
    ]
    reasons = [rejection_reason(error) for error in errors]
    assert set(reasons) == set(REJECTION_REASONS)
    assert len(set(reasons)) == len(errors)


def test_vllm_names_can_be_turned_off() -> None:
    exporter = make_exporter(vllm_names=False)
    exporter.observe(full_step())
    assert not [sample for sample in samples(exporter) if sample.name.startswith("vllm:")]


def test_scrapes_in_both_formats(client: httpx.Client) -> None:
    client.post("/v1/completions", json={"prompt": "hi"})
    client.post("/v1/completions", json={"prompt": 5})
    client.post("/v1/completions", json={"prompt": "hi", "model": "x" * 10})
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = [s for f in text_string_to_metric_families(plain.text) for s in f.samples]
    assert value(found, "bitskip_request_rejected_total", reason="invalid_request") >= 1
    assert value(found, "bitskip_request_rejected_total", reason="model_not_found") >= 1
    assert value(found, "bitskip_request_success_total", finished_reason="length") >= 1
    accept = {"accept": "application/openmetrics-text;version=1.0.0"}
    modern = client.get("/metrics", headers=accept)
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    families = list(openmetrics.text_string_to_metric_families(modern.text))
    assert len(families) > 20
    for text in (plain.text, modern.text):
        assert "_created" not in text
        assert "xxxxxxxxxx" not in text

"""What a benchmark keeps: every request of every run, and the figures made of them.

The JSON file is a `Report` as it stands here. Times are seconds; those of a request count from
the start of its run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

FORMAT_VERSION = 1
"""Raised with every change that a reader of the older files would trip over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request, as its client saw it."""

    index: int
    exit_layer: int | None
    """As asked for; None: all layers."""
    speculation: str
    seed: int
    scheduled_s: float
    """When it was due. Latencies count from here, so that a generator which a slow server holds
    up cannot hide the wait."""
    sent_s: float
    event_s: tuple[float, ...] = ()
    """When each event with tokens came."""
    event_tokens: tuple[int, ...] = ()
    """How many tokens each brought."""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    sources: dict[str, int] | None = None
    """Tokens by source."""
    server_ttft_s: float | None = None
    """From arrival to first token, by the server's clock."""
    server_queue_s: float | None = None
    error: str | None = None
    """Why it failed; its other figures then say how far it came."""

    @property
    def ttft_s(self) -> float | None:
        """From when it was due to its first token."""
        return self.event_s[0] - self.scheduled_s if self.event_s else None

    @property
    def e2e_s(self) -> float | None:
        """From when it was due to its last token; None for a failed one."""
        if self.error is not None or not self.event_s:
            return None
        return self.event_s[-1] - self.scheduled_s

    @property
    def gaps_s(self) -> list[float]:
        """Times between the events, which is what a reader sees."""
        return [later - earlier for earlier, later in pairwise(self.event_s)]

    def inter_token_latencies_s(self) -> Iterator[float]:
        """The server's definition: an interval over the tokens that it gave, once per token."""
        for gap_s, num_tokens in zip(self.gaps_s, self.event_tokens[1:], strict=True):
            for _ in range(num_tokens):
                yield gap_s / num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Of one latency, in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one run; a distribution is None where nothing was measured."""

    num_completed: int
    num_failed: int
    errors: dict[str, int]
    duration_s: float
    """From the first request's due time to the last event."""
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    completion_tokens: int
    ttft_s: Distribution | None
    itl_s: Distribution | None
    """Per token."""
    gap_s: Distribution | None
    """Between events, each of which brings one or more tokens."""
    e2e_s: Distribution | None
    tokens_per_event: float | None
    acceptance_rate: float | None
    """Accepted share of the drafted tokens; None where nothing was drafted."""
    max_lateness_s: float
    """By how much the latest request was sent after it was due."""
    max_generator_lag_s: float
    """The generator's own worst stall: latencies are no better known than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramDelta:
    """What one of the server's histograms gained during a run."""

    count: int
    sum_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """The server's own account of a run, other clients' requests included."""

    ttft: HistogramDelta
    itl: HistogramDelta
    e2e: HistogramDelta
    generation_tokens: int
    draft_tokens: int
    accepted_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One load on one setting, or on a mix of them."""

    load: str
    settings: tuple[str, ...]
    rate: float | None
    """Requests per second; None for a closed loop, and where all are sent at the start."""
    concurrency: int | None
    summary: Summary
    server: ServerFigures | None
    """None where /metrics cannot be read."""
    requests: tuple[RequestRecord, ...]

    @property
    def setting(self) -> str:
        """The setting, or how many were mixed."""
        return self.settings[0] if len(self.settings) == 1 else f"mix of {len(self.settings)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole benchmark."""

    kind: Literal["bitskip-bench"] = "bitskip-bench"
    format_version: Literal[1] = FORMAT_VERSION
    started_at: str
    """UTC, ISO 8601."""
    server_version: str
    model: str
    num_layers: int
    options: dict[str, str | int | float | bool | None]
    """As the command was given them, and defaults."""
    runs: tuple[Run, ...]

    def to_json(self) -> bytes:
        """As it is written to files."""
        from pydantic import TypeAdapter

        return TypeAdapter(Report).dump_json(self, indent=1)


def read_report(path: Path) -> Report:
    """Read what `Report.to_json` wrote; raises `ValueError` for anything else."""
    from pydantic import TypeAdapter

    return TypeAdapter(Report).validate_json(path.read_bytes(), strict=True)

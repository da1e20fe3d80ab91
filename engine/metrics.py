"""What the engine counts, as plain data; an exporter turns it into Prometheus series.

One `StepStats` describes one engine step. Layers and depths are the HTTP interface's; a
depth of 0 stands for drafts that came from n-grams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from engine.types import FinishReason, TokenSource

Phase = Literal["draft", "verify", "decode", "prefill", "mixed"]


@dataclass(frozen=True, slots=True)
class PassStats:
    """One sweep and its head: how long it took and how deep its deepest row went."""

    phase: Phase
    exit_layer: int
    num_rows: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class DraftStats:
    """One sequence's verified draft in one round."""

    draft_exit_layer: int
    num_draft_tokens: int
    num_accepted_tokens: int


@dataclass(frozen=True, slots=True)
class IntervalStats:
    """Time between two deliveries to one choice, and the tokens that the second one gave."""

    exit_layer: int
    speculative: bool
    interval_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class FinishedStats:
    """One choice that ended, however it ended."""

    exit_layer: int
    speculative: bool
    """Whether a draft of it was ever verified."""
    reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int
    queue_s: float
    time_to_first_token_s: float | None
    prefill_s: float | None
    """From admission to the first token."""
    decode_s: float | None
    """From the first token to the last."""
    e2e_s: float


@dataclass(slots=True)
class StepStats:
    """Counts of one step; gauges hold the state after it."""

    passes: list[PassStats] = field(default_factory=list)
    drafts: list[DraftStats] = field(default_factory=list)
    intervals: list[IntervalStats] = field(default_factory=list)
    finished: list[FinishedStats] = field(default_factory=list)
    generated: dict[tuple[int, TokenSource], int] = field(default_factory=dict)
    """(exit layer, source) → delivered tokens."""
    left_queue: list[str] = field(default_factory=list)
    """Request id of each choice that waits no more: admitted for the first time, or ended."""
    draft_lengths: list[int] = field(default_factory=list)
    """Drafts chosen for each choice that could have been drafted for, 0 included."""
    num_prompt_tokens: int = 0
    """Tokens of the prompts admitted for the first time, once however many choices they have."""
    num_preemptions: int = 0
    num_prefix_queries: int = 0
    """Tokens looked up in the prefix cache."""
    num_prefix_hits: int = 0
    """Tokens found there."""
    num_running: int = 0
    num_waiting: int = 0
    kv_usage_ratio: float = 0.0

    def count_generated(self, exit_layer: int, source: TokenSource) -> None:
        """Count one delivered token."""
        key = (exit_layer, source)
        self.generated[key] = self.generated.get(key, 0) + 1

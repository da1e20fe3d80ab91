"""What answers tell of themselves beside the text: `metrics` and `usage`."""

from __future__ import annotations

from typing import Any

from engine.types import ChoiceMetrics, ChoiceOutput, SpeculationMetrics


def _milliseconds(duration_s: float | None) -> float | None:
    return None if duration_s is None else duration_s * 1000.0


def metrics_object(metrics: ChoiceMetrics | None) -> dict[str, Any] | None:
    """The `metrics` object that `return_metrics` asks for; None where nothing was measured."""
    if metrics is None:
        return None
    duration_s = metrics.generation_time_s
    return {
        "exit_layer": metrics.exit_layer,
        "time_to_first_token_ms": _milliseconds(metrics.time_to_first_token_s),
        "generation_time_ms": _milliseconds(duration_s),
        "queue_time_ms": _milliseconds(metrics.queue_time_s),
        "mean_itl_ms": _milliseconds(metrics.mean_itl_s),
        "tokens_per_second": metrics.num_generated_tokens / duration_s if duration_s > 0 else None,
        "seed": metrics.seed,
        "speculative_decoding": _speculation_object(metrics.speculation),
    }


def _speculation_object(speculation: SpeculationMetrics | None) -> dict[str, Any] | None:
    if speculation is None:
        return None
    return {
        "draft_exit_layer": speculation.draft_exit_layer,
        "num_drafts": speculation.num_drafts,
        "num_draft_tokens": speculation.num_draft_tokens,
        "num_accepted_tokens": speculation.num_accepted_tokens,
        "draft_acceptance_rate": speculation.draft_acceptance_rate,
        "mean_acceptance_length": speculation.mean_acceptance_length,
        "accepted_per_position": list(speculation.accepted_per_position),
    }


class UsageCounter:
    """The `usage` of one request: a prompt counts once, however many choices it has.

    Completion tokens are exact at any time; cached tokens and drafts become known as choices
    finish.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_completion_tokens = 0
        self._num_cached: dict[int, int] = {}
        self._num_accepted = 0
        self._num_rejected = 0

    def count(self, prompt_number: int, output: ChoiceOutput) -> None:
        """Count one output of a choice of this prompt."""
        self._num_completion_tokens += len(output.tokens)
        if output.metrics is None:
            return
        # A prompt's first choice shows what was cached before; its siblings hit the first's.
        if output.index == 0:
            self._num_cached[prompt_number] = output.metrics.num_cached_tokens
        speculation = output.metrics.speculation
        if speculation is not None:
            self._num_accepted += speculation.num_accepted_tokens
            self._num_rejected += speculation.num_draft_tokens - speculation.num_accepted_tokens

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's form."""
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached.values())},
            "completion_tokens_details": {
                "accepted_prediction_tokens": self._num_accepted,
                "rejected_prediction_tokens": self._num_rejected,
            },
        }

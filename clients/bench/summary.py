"""From requests to figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from clients.bench.records import Distribution, RequestRecord, Summary


def distribution(values_s: Iterable[float | None]) -> Distribution | None:
    """Mean and percentiles, interpolated linearly; None is left out."""
    values = np.array([value for value in values_s if value is not None])
    if not len(values):
        return None
    p50, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
    return Distribution(
        count=len(values),
        mean=float(values.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(values.max()),
    )


def summarise(records: Sequence[RequestRecord], max_generator_lag_s: float) -> Summary:
    """The figures of a run; latencies and rates are of the requests that were completed."""
    completed = [record for record in records if record.error is None]
    errors = Counter(record.error for record in records if record.error is not None)
    begin_s = min((record.scheduled_s for record in records), default=0.0)
    ends_s = [record.event_s[-1] for record in records if record.event_s]
    duration_s = max(ends_s, default=begin_s) - begin_s
    num_tokens = sum(record.completion_tokens for record in completed)
    num_events = sum(len(record.event_s) for record in completed)
    num_drafted = sum(record.draft_tokens for record in completed)
    num_accepted = sum(record.accepted_tokens for record in completed)
    return Summary(
        num_completed=len(completed),
        num_failed=len(records) - len(completed),
        errors=dict(errors),
        duration_s=duration_s,
        requests_per_s=len(completed) / duration_s if duration_s else 0.0,
        output_tokens_per_s=num_tokens / duration_s if duration_s else 0.0,
        prompt_tokens=sum(record.prompt_tokens for record in completed),
        completion_tokens=num_tokens,
        ttft_s=distribution(record.ttft_s for record in completed),
        itl_s=distribution(
            itl_s for record in completed for itl_s in record.inter_token_latencies_s()
        ),
        gap_s=distribution(gap_s for record in completed for gap_s in record.gaps_s),
        e2e_s=distribution(record.e2e_s for record in completed),
        tokens_per_event=num_tokens / num_events if num_events else None,
        acceptance_rate=num_accepted / num_drafted if num_drafted else None,
        max_lateness_s=max((record.sent_s - record.scheduled_s for record in records), default=0.0),
        max_generator_lag_s=max_generator_lag_s,
    )

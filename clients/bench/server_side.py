"""The server's own account of a run: its histograms before and after."""

from __future__ import annotations

from clients.bench.records import HistogramDelta, ServerFigures
from clients.scrape import Scrape

_PREFIX = "bitskip_"


def server_figures(before: Scrape, after: Scrape) -> ServerFigures:
    """What the server's counters gained between two scrapes."""

    def gained(name: str) -> float:
        return after.total(_PREFIX + name) - before.total(_PREFIX + name)

    def histogram(name: str) -> HistogramDelta:
        return HistogramDelta(
            count=round(gained(f"{name}_seconds_count")), sum_s=gained(f"{name}_seconds_sum")
        )

    return ServerFigures(
        ttft=histogram("time_to_first_token"),
        itl=histogram("inter_token_latency"),
        e2e=histogram("request_e2e"),
        generation_tokens=round(gained("generation_tokens_total")),
        draft_tokens=round(gained("spec_decode_num_draft_tokens_total")),
        accepted_tokens=round(gained("spec_decode_num_accepted_tokens_total")),
    )

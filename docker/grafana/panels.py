"""What the dashboard shows: titles, units and queries, row by row.

A test runs every query against a real Prometheus that scrapes a real server.
"""

from __future__ import annotations

from dataclasses import dataclass

SELECTOR = 'model_name=~"$model_name"'


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel; `description` is the text behind its (i)."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    maximum: float | None = None
    decimals: int | None = None


def rate(metric: str, *by: str, matching: str = "") -> str:
    """Per second, summed over everything but `by`."""
    selector = f"{SELECTOR}, {matching}" if matching else SELECTOR
    summed = f"sum by ({', '.join(by)}) " if by else "sum"
    return f"{summed}(rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, *by: str) -> str:
    """A quantile of a histogram, by these labels."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', 'le', *by)})"


def mean(histogram: str, *by: str) -> str:
    """The mean of what a histogram observed, by these labels."""
    return f"{rate(f'{histogram}_sum', *by)} / {rate(f'{histogram}_count', *by)}"


def ratio(part: str, whole: str, *by: str) -> str:
    """One counter's growth over another's."""
    return f"{rate(part, *by)} / {rate(whole, *by)}"


def percentiles(histogram: str, *by: str) -> tuple[Query, ...]:
    """Median, 95th and 99th percentile by exit layer."""
    return tuple(
        Query(quantile(share, histogram, "exit_layer", *by), f"exit {{{{exit_layer}}}} {name}")
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def now(title: str, unit: str, expr: str, description: str, decimals: int | None = None) -> Panel:
    """One number."""
    query = (Query(expr, title),)
    return Panel(title, unit, query, description, "stat", width=4, height=4, decimals=decimals)


TTFT, ITL = "bitskip_time_to_first_token_seconds", "bitskip_inter_token_latency_seconds"
E2E, PASS = "bitskip_request_e2e_seconds", "bitskip_pass_seconds"
GENERATED, SPEC = "bitskip_generation_tokens_total", "bitskip_spec_decode_num"
ACCEPTED, DRAFTED = f"{SPEC}_accepted_tokens_total", f"{SPEC}_draft_tokens_total"
ENDED, REJECTED = "bitskip_request_success_total", "bitskip_request_rejected_total"
OF_PASS, PASS_LEGEND = ("phase", "exit_layer"), "{{phase}} to {{exit_layer}}"
FAILED = 'finished_reason="error"'
PER_POSITION = f"{SPEC}_accepted_tokens_per_pos_total"
DRAFTS = f"{SPEC}_drafts_total"
HITS, LOOKED_UP = "bitskip_prefix_cache_hits_total", "bitskip_prefix_cache_queries_total"

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            now("Tokens per second", "short", rate(GENERATED), "Delivered tokens.", decimals=0),
            now(
                "Requests per second",
                "reqps",
                rate(ENDED),
                "Choices that ended, for whatever reason.",
            ),
            now("First token, p95", "s", quantile(0.95, TTFT), "From arrival; all exits."),
            now("Between tokens, p95", "s", quantile(0.95, ITL), "All exits."),
            now(
                "Drafts accepted",
                "percentunit",
                ratio(ACCEPTED, DRAFTED),
                "Share of the drafted tokens that verification accepted; all draft depths.",
                decimals=1,
            ),
            now(
                "Refused or failed per second",
                "cps",
                f"{rate(REJECTED)} + {rate(ENDED, matching=FAILED)}",
                "Requests that were turned away, and choices that the server had to end.",
            ),
        ),
    ),
    (
        "Latency by exit layer",
        (
            Panel(
                "Time to first token",
                "s",
                percentiles(TTFT),
                "From arrival to the first token: queue and prompt.",
            ),
            Panel(
                "Time between tokens",
                "s",
                percentiles(ITL),
                "A step's interval divided by the tokens that it gave, once per token.",
            ),
            Panel("Whole request", "s", percentiles(E2E), "From arrival to the end."),
            Panel(
                "Where a request's time goes",
                "s",
                tuple(
                    Query(
                        mean(f"bitskip_request_{part}_seconds", "exit_layer"),
                        f"exit {{{{exit_layer}}}} {part}",
                    )
                    for part in ("queue", "prefill", "decode")
                ),
                "Means: waiting for admission, reading the prompt, first to last token.",
                width=12,
            ),
            Panel(
                "Time between tokens, drafted or not",
                "s",
                (
                    Query(
                        mean(ITL, "exit_layer", "speculative"),
                        "exit {{exit_layer}}, drafted: {{speculative}}",
                    ),
                ),
                "Steps that verified a draft beside steps that did not, by exit layer.",
                width=12,
            ),
        ),
    ),
    (
        "Passes",
        (
            Panel(
                "Pass time by phase and exit, median",
                "s",
                (Query(quantile(0.5, PASS, "phase", "exit_layer"), "{{phase}} to {{exit_layer}}"),),
                "A sweep and its head, by the depth of its deepest row.",
            ),
            Panel(
                "Pass time by phase and exit, p95",
                "s",
                (Query(quantile(0.95, PASS, *OF_PASS), PASS_LEGEND),),
                "A sweep and its head, by the depth of its deepest row.",
            ),
            Panel(
                "Share of time in passes",
                "percentunit",
                (Query(rate(f"{PASS}_sum", "phase"), "{{phase}}"),),
                "Seconds of passes per second; the rest is idle, or Python.",
                stacked=True,
                maximum=1,
            ),
            Panel(
                "Passes per second",
                "ops",
                (Query(rate(f"{PASS}_count", *OF_PASS), PASS_LEGEND),),
                "How often each kind of sweep runs.",
                width=12,
            ),
            Panel(
                "Rows per sweep",
                "short",
                (
                    Query(mean("bitskip_sweep_rows"), "mean"),
                    Query(quantile(0.95, "bitskip_sweep_rows"), "p95"),
                ),
                "Token positions that share the reading of the weights.",
                width=12,
            ),
        ),
    ),
    (
        "Speculation",
        (
            Panel(
                "Acceptance by position",
                "percentunit",
                (
                    Query(
                        f"({rate(PER_POSITION, 'exit_layer', 'position')} > 0)"
                        f" / on (exit_layer) group_left {rate(DRAFTS, 'exit_layer')}",
                        "depth {{exit_layer}}, position {{position}}",
                    ),
                ),
                "Share of the drafts of a depth whose token at this position (from 0) was accepted;"
                " depth 0 stands for n-grams.",
                maximum=1,
            ),
            Panel(
                "Acceptance by draft depth",
                "percentunit",
                (Query(ratio(ACCEPTED, DRAFTED, "exit_layer"), "depth {{exit_layer}}"),),
                "Accepted share of the drafted tokens; depth 0 stands for n-grams.",
                maximum=1,
            ),
            Panel(
                "Tokens by source",
                "short",
                (Query(rate(GENERATED, "source"), "{{source}}"),),
                "Per second: accepted drafts, corrections of rejected ones, the bonus after a whole"
                " draft, and tokens of steps without a draft.",
                stacked=True,
            ),
            Panel(
                "Draft length",
                "short",
                (
                    Query(f"avg(bitskip_spec_draft_length{{{SELECTOR}}})", "chosen"),
                    Query(
                        ratio(DRAFTED, DRAFTS, "exit_layer"),
                        "verified, depth {{exit_layer}}",
                    ),
                ),
                "Chosen: per round and choice, rounds without a draft included, moving.",
            ),
            Panel(
                "Tokens per verification",
                "short",
                (
                    Query(
                        f"1 + {mean('bitskip_accepted_length', 'exit_layer')}",
                        "depth {{exit_layer}}",
                    ),
                ),
                "What a verified draft brings: its accepted tokens, and one of the full model.",
            ),
            Panel(
                "Tokens by exit layer",
                "short",
                (Query(rate(GENERATED, "exit_layer"), "exit {{exit_layer}}"),),
                "Delivered per second, by the depth that answered.",
                stacked=True,
            ),
        ),
    ),
    (
        "Load",
        (
            Panel(
                "Running and waiting",
                "short",
                (
                    Query(f"sum(bitskip_num_requests_running{{{SELECTOR}}})", "running"),
                    Query(f"sum(bitskip_num_requests_waiting{{{SELECTOR}}})", "waiting"),
                ),
                "Choices being worked on, and in the queue.",
            ),
            Panel(
                "K/V cache in use",
                "percentunit",
                (Query(f"max(bitskip_kv_cache_usage_ratio{{{SELECTOR}}})", "in use"),),
                "Share of the blocks that running choices hold; the fullest server.",
                maximum=1,
            ),
            Panel(
                "Prefix cache hits",
                "percentunit",
                (Query(ratio(HITS, LOOKED_UP), "hits"),),
                "Share of the looked-up prompt tokens that needed no computing.",
                maximum=1,
            ),
            Panel(
                "Preemptions",
                "cps",
                (Query(rate("bitskip_preemptions_total"), "preemptions"),),
                "Choices that lost their K/V blocks to older ones and will be computed again.",
            ),
            Panel(
                "Prompt and generated tokens",
                "short",
                (
                    Query(rate("bitskip_prompt_tokens_total"), "prompt"),
                    Query(rate(GENERATED), "generated"),
                ),
                "Per second.",
            ),
            Panel(
                "Lengths of requests",
                "short",
                tuple(
                    Query(quantile(share, f"bitskip_request_{part}_tokens"), f"{part} {name}")
                    for part in ("prompt", "generation")
                    for share, name in ((0.5, "p50"), (0.95, "p95"))
                ),
                "Tokens of the choices that ended.",
            ),
        ),
    ),
    (
        "Outcomes",
        (
            Panel(
                "Ended, by reason",
                "cps",
                (Query(rate(ENDED, "finished_reason"), "{{finished_reason}}"),),
                "Choices per second; abort: the client left.",
                width=12,
                stacked=True,
            ),
            Panel(
                "Refused, by reason",
                "cps",
                (Query(rate(REJECTED, "reason"), "{{reason}}"),),
                "Requests per second that were turned away before they began.",
                width=12,
                stacked=True,
            ),
        ),
    ),
)

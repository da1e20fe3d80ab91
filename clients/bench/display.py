"""A benchmark on a terminal: its progress, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from clients.bench.records import Distribution, Report, RequestRecord, Run
from clients.bench.session import RunPlan

UNBOUNDED_WIDTH = 200
"""Columns where the output is no terminal: a table must not be folded in a file."""
LAG_WORTH_A_WARNING_S = 0.05

OnRun = Callable[[RunPlan, int | None], None]
OnFinished = Callable[[RequestRecord], None]


@contextmanager
def progress_bar() -> Iterator[tuple[OnRun, OnFinished]]:
    """A bar on stderr for the run that is going on; yields what `run_bench` is to call."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}{task.fields[of]} requests, {task.fields[failed]} failed"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=None, of="", failed=0)
        num_failed = 0

        def on_run(plan: RunPlan, num_requests: int | None) -> None:
            nonlocal num_failed
            num_failed = 0
            of = "" if num_requests is None else f" of {num_requests}"
            bar.reset(task, total=num_requests, description=str(plan), of=of, failed=0)

        def on_finished(record: RequestRecord) -> None:
            nonlocal num_failed
            num_failed += record.error is not None
            bar.update(task, advance=1, failed=num_failed)

        yield on_run, on_finished


def _ms(distribution: Distribution | None) -> list[str]:
    if distribution is None:
        return ["", "", ""]
    return [
        f"{value_s * 1000:.1f}"
        for value_s in (distribution.p50, distribution.p90, distribution.p99)
    ]


def figures(report: Report) -> Iterator[Table]:
    """The report's tables: throughput, then latencies."""
    first = Table(title=f"{report.model}, {report.num_layers} layers")
    second = Table(title="latencies, ms: p50, p90, p99")
    for table in (first, second):
        table.add_column("load")
        table.add_column("setting")
    for name in ("done", "failed", "seconds", "req/s", "tok/s", "tok/event", "acceptance"):
        first.add_column(name, justify="right")
    for name in ("TTFT", "per token", "between events", "whole request"):
        for part in (name, "", ""):
            second.add_column(part, justify="right")
    for run in report.runs:
        what = (run.load, run.setting)
        summary = run.summary
        per_event, acceptance = summary.tokens_per_event, summary.acceptance_rate
        first.add_row(
            *what,
            str(summary.num_completed),
            str(summary.num_failed),
            f"{summary.duration_s:.1f}",
            f"{summary.requests_per_s:.2f}",
            f"{summary.output_tokens_per_s:.1f}",
            "" if per_event is None else f"{per_event:.2f}",
            "" if acceptance is None else f"{acceptance:.1%}",
        )
        second.add_row(
            *what,
            *_ms(summary.ttft_s),
            *_ms(summary.itl_s),
            *_ms(summary.gap_s),
            *_ms(summary.e2e_s),
        )
    yield first
    yield second


def remarks(run: Run) -> Iterator[str]:
    """What a reader of the figures should know about a run; nothing if all is well."""
    summary, server = run.summary, run.server
    for error, count in summary.errors.items():
        yield f"{count} failed: {error}"
    if summary.max_generator_lag_s > LAG_WORTH_A_WARNING_S:
        yield (
            f"the generator itself stalled for up to {summary.max_generator_lag_s * 1000:.0f} ms: "
            "latencies may be that much too long"
        )
    if server is None:
        yield "/metrics could not be read, so the server's own figures are missing"
        return
    counted = (server.ttft.count, server.generation_tokens)
    if not summary.num_failed and counted != (summary.num_completed, summary.completion_tokens):
        yield (
            f"the server counted {counted[0]} requests and {counted[1]} tokens, not "
            f"{summary.num_completed} and {summary.completion_tokens}: others use it too"
        )


def server_means(run: Run) -> str | None:
    """The server's mean latencies beside the client's; None where there are none."""
    summary, server = run.summary, run.server
    if server is None or summary.ttft_s is None or not server.ttft.count:
        return None
    parts = [
        f"TTFT {_mean_ms(server.ttft.sum_s, server.ttft.count)} ms (here "
        f"{summary.ttft_s.mean * 1000:.1f})"
    ]
    if summary.itl_s is not None and server.itl.count:
        parts.append(
            f"per token {_mean_ms(server.itl.sum_s, server.itl.count)} ms (here "
            f"{summary.itl_s.mean * 1000:.1f})"
        )
    return "means by the server's clock: " + ", ".join(parts)


def _mean_ms(sum_s: float, count: int) -> str:
    return f"{sum_s / count * 1000:.1f}"


def print_report(report: Report, console: Console) -> None:
    """Tables, and what is to be said about each run."""
    if not console.is_terminal:
        console.width = UNBOUNDED_WIDTH
    for table in figures(report):
        console.print(table)
    for run in report.runs:
        notes = [note for note in (server_means(run), *remarks(run)) if note is not None]
        if len(run.settings) > 1:
            notes.insert(0, "requests took one of: " + "; ".join(run.settings))
        for note in notes:
            text = f"{run.load}, {run.setting}: {note}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)

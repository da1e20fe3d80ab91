"""A report as pictures; matplotlib comes with the extra `plots`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter

from clients.bench.records import Report, RequestRecord, Run

LEGEND_COLUMNS = 4
LINEAR_BELOW_MS = 1.0
"""Latencies go over orders of magnitude: the axis is logarithmic, but may begin at 0."""

Values = Callable[[RequestRecord], Sequence[float]]


def _ttft(record: RequestRecord) -> Sequence[float]:
    return () if record.ttft_s is None else (record.ttft_s,)


def _itl(record: RequestRecord) -> Sequence[float]:
    return tuple(record.inter_token_latencies_s())


def _e2e(record: RequestRecord) -> Sequence[float]:
    return () if record.e2e_s is None else (record.e2e_s,)


PANELS: tuple[tuple[str, Values], ...] = (
    ("time to first token, ms", _ttft),
    ("latency per token, ms", _itl),
    ("whole request, ms", _e2e),
)


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write `latencies.png` and `throughput.png` into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "latencies.png", folder / "throughput.png"]
    _plot_latencies(report, paths[0])
    _plot_throughput(report, paths[1])
    return paths


def _label(run: Run) -> str:
    return f"{run.load}; {run.setting}"


def line_styles() -> Iterator[dict[str, Any]]:
    """What tells the runs' curves apart: ten colours, then the same in another line style."""
    for dashes in itertools.cycle(("-", "--", ":", "-.")):
        for colour in range(10):
            yield {"color": f"C{colour}", "linestyle": dashes}


def _plot_latencies(report: Report, path: Path) -> None:
    """Each run's cumulative distributions."""
    num_rows = math.ceil(len(report.runs) / LEGEND_COLUMNS)
    figure, axes = plt.subplots(
        1, len(PANELS), figsize=(15, 5 + 0.25 * num_rows), sharey=True, layout="constrained"
    )
    for axis, (title, values_of) in zip(axes, PANELS, strict=True):
        for run, style in zip(report.runs, line_styles(), strict=False):
            values_ms = np.sort(
                [
                    value_s * 1000.0
                    for record in run.requests
                    if record.error is None
                    for value_s in values_of(record)
                ]
            )
            if len(values_ms):
                share = np.arange(1, len(values_ms) + 1) / len(values_ms)
                axis.step(values_ms, share, where="post", label=_label(run), **style)
        axis.set_xscale("symlog", linthresh=LINEAR_BELOW_MS)
        axis.set_xlim(left=max(0.0, axis.get_xlim()[0]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of requests or tokens")
    axes[0].set_ylim(0, 1.01)
    # Below the panels, where it hides no curve.
    labelled = max((axis.get_legend_handles_labels() for axis in axes), key=lambda two: len(two[0]))
    if labelled[0]:
        figure.legend(*labelled, fontsize="small", loc="outside lower center", ncols=LEGEND_COLUMNS)
    figure.suptitle(f"{report.model}, {report.started_at}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_throughput(report: Report, path: Path) -> None:
    """Tokens per second of each run, and the share of drafts that were accepted."""
    runs = report.runs
    places = np.arange(len(runs))
    figure, axis = plt.subplots(figsize=(10, 1.5 + 0.5 * len(runs)))
    rates = [run.summary.output_tokens_per_s for run in runs]
    bars = axis.barh(places, rates, color="tab:blue", alpha=0.7)
    texts = []
    for run in runs:
        acceptance = run.summary.acceptance_rate
        drafts = "" if acceptance is None else f", {acceptance:.0%} of drafts accepted"
        texts.append(f"{run.summary.output_tokens_per_s:.0f}{drafts}")
    axis.bar_label(bars, texts, padding=4, fontsize="small")
    axis.set_yticks(places, [_label(run) for run in runs])
    axis.invert_yaxis()
    axis.set_xlim(0, max([*rates, 1.0]) * 1.35)
    axis.set_xlabel("tokens per second")
    axis.set_title(f"{report.model}, {report.started_at}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)

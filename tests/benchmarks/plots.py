"""Pictures of results, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib  # pyright: ignore[reportMissingImports]
import numpy as np
from matplotlib import pyplot as plt  # pyright: ignore[reportMissingImports]

from benchmarks.results import SectionResult, Series

matplotlib.use("Agg")

SHOWN = (0.1, 0.9)
"""Quantiles of the samples between which a line's band lies."""


def draw(results: Mapping[str, SectionResult], folder: Path) -> list[Path]:
    """Draw what the results have data for; the files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, plot in (("decode", _decode), ("speculation", _speculation), ("servers", _servers)):
        if name in results and any(series.samples for series in results[name].series):
            figure = plot(results[name])
            drawn.append(folder / f"{name}.png")
            figure.savefig(drawn[-1], dpi=130, bbox_inches="tight")
            plt.close(figure)
    return drawn


def _decode(result: SectionResult):
    """Tokens per second against the number of sequences, one line per system."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for system in dict.fromkeys(series.system for series in result.series):
        if system != "read only":
            _line(axes, [s for s in result.select() if s.system == system], "sequences", system)
    floor = result.find("read only")
    if floor is not None:
        axes.axhline(floor.median, ls=":", c="grey", label="one read of the bytes per token")
    _finish(axes, "sequences", "Plain greedy decoding")
    return figure


def _speculation(result: SectionResult):
    """Tokens per second against the agreement; a panel per number of sequences."""
    counts = result.values("sequences")
    figure, panels = plt.subplots(1, len(counts), figsize=(3.6 * len(counts), 4), squeeze=False)
    modes = dict.fromkeys(str(series.case["mode"]) for series in result.series)
    for axes, count in zip(panels[0], counts, strict=True):
        for mode in modes:
            width = 2.5 if mode in ("plain", "auto") else 1.0
            label = counted(mode, "draft") if mode.isdigit() else mode
            _line(axes, list(result.select(sequences=count, mode=mode)), "agreement", label, width)
        _finish(axes, "agreement of exit and full depth", counted(count, "sequence"))
    for axes in panels[0][1:]:
        axes.set_ylabel("")
        axes.get_legend().remove()
    return figure


def _servers(result: SectionResult):
    """Bars of tokens per second over HTTP."""
    counts = result.values("streams")
    figure, panels = plt.subplots(1, len(counts), figsize=(5 * len(counts), 4), squeeze=False)
    for axes, count in zip(panels[0], counts, strict=True):
        series = list(result.select(streams=count))
        names = [f"{each.system}\n{_mode(each)}" for each in series]
        errors = [[s.median - min(s.samples) for s in series],
                  [max(s.samples) - s.median for s in series]]  # fmt: skip
        axes.bar(names, [each.median for each in series], yerr=errors, capsize=3)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_ylabel("tokens per second")
        axes.set_title(f"{counted(count, 'stream')} over HTTP", fontsize=10)
    return figure


def _mode(series: Series) -> str:
    mode = str(series.case["mode"])
    return counted(mode, "draft") if mode.isdigit() else mode


def counted(count: int | str, noun: str) -> str:
    """A number and its noun: 1 draft, 2 drafts."""
    return f"{count} {noun}" if int(count) == 1 else f"{count} {noun}s"


def _line(axes, series: list[Series], key: str, label: str, width: float = 1.5) -> None:
    series = sorted(series, key=lambda each: each.case[key])
    if not series:
        return
    places = [each.case[key] for each in series]
    (line,) = axes.plot(
        places, [each.median for each in series], marker="o", ms=3, lw=width, label=label
    )
    low, high = zip(*(np.quantile(each.samples, SHOWN) for each in series), strict=True)
    axes.fill_between(places, low, high, color=line.get_color(), alpha=0.12, lw=0)


def _finish(axes, label: str, title: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylabel("tokens per second, all sequences")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(title, fontsize=10)

"""Draws the dashboard's queries, answered by a real Prometheus, into one picture.

    PYTHONPATH=tests python tests/observability/draw_panels.py docker/grafana/panels.png

It serves the demo model, has Prometheus scrape it, keeps clients busy for a minute and a half and
evaluates every panel's queries over that time. matplotlib draws them: it shows what the queries
bring, not what Grafana looks like. Needs Prometheus, and the extra `bench` for matplotlib.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
from matplotlib.axes import Axes  # pyright: ignore[reportMissingImports]
from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
from matplotlib.lines import Line2D  # pyright: ignore[reportMissingImports]
from matplotlib.ticker import FuncFormatter  # pyright: ignore[reportMissingImports]
from PIL import Image  # pyright: ignore[reportMissingImports]

from support.prometheus import PanelQuery, Prometheus, dashboard_queries, prometheus_scraping
from support.served_process import ServedProcess, serving

CAPTION = (
    "The panels' queries of docker/grafana/dashboards/bitskip.json, drawn from Prometheus by "
    "matplotlib; not Grafana.\nThe demo model (12 layers) on one thread: one client, then four, "
    "then eight; drafts from layer 3, from n-grams, or as the controller chooses; exits 6, 9, 12. "
    "Time in seconds."
)
PHASES = ((1, 25.0), (4, 25.0), (8, 30.0))
"""Clients at once, and for how many seconds."""
REST_S = 6.0
KINDS: tuple[dict[str, Any], ...] = (
    {"speculative": False},
    {"speculative": {"exit_layer": 3, "num_speculations": 3}},
    {"exit_layer": 9, "speculative": {"exit_layer": 3, "num_speculations": 2}},
    {"exit_layer": 6, "speculative": False},
    {"speculative": {"method": "ngram", "num_speculations": 3}, "temperature": 0},
    {},
)
PROMPTS = (
    "Once upon a time there was a little girl named Lily. She loved to play outside in the park.",
    "Tom had a red ball. He took the ball to the park to play with his friend Sue. They",
    "One day, a big bear went into the woods to look for some honey. He was very hungry, and",
)
WINDOW_S = 6.0
"""What rates are taken over."""
COLUMNS = 4
MAX_LEGEND = 7
MAX_COLORS = 64

Formatter = Callable[[float], str]


def keep_busy(url: str, number: int, until: float) -> None:
    """One client, one request after the other."""
    with httpx.Client(base_url=url, timeout=600) as http:
        turn = number
        while time.monotonic() < until:
            body = {"temperature": 0.5, "max_tokens": 180, **KINDS[turn % len(KINDS)]}
            http.post("/v1/completions", json={"prompt": PROMPTS[turn % len(PROMPTS)], **body})
            if turn % 9 == 0:
                http.post("/v1/completions", json={"prompt": "x", "max_tokens": 10**6})
            if turn % 15 == 0:
                leave(http)
            turn += 1


def leave(http: httpx.Client) -> None:
    """Begin to read an answer, and go."""
    body = {"prompt": PROMPTS[0], "stream": True, "max_tokens": 300}
    with http.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_raw())


def put_load_on(served: ServedProcess) -> None:
    """The phases, one after the other."""
    for num_clients, length_s in PHASES:
        until = time.monotonic() + length_s
        clients = [
            threading.Thread(target=keep_busy, args=(served.url, number, until))
            for number in range(num_clients)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()


# --- drawing ---------------------------------------------------------------------------------


def seconds(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:g} s" if abs(value) >= 1 else f"{value * 1000:.3g} ms"


def short(value: float) -> str:
    return f"{value / 1000:.3g}k" if abs(value) >= 1000 else f"{value:.3g}"


FORMATTERS: dict[str, Formatter] = {
    "s": seconds,
    "percentunit": lambda value: f"{value:.0%}",
    "cps": lambda value: f"{short(value)}/s",
    "ops": lambda value: f"{short(value)}/s",
    "reqps": lambda value: f"{short(value)}/s",
    "short": short,
}


def draw_stat(axes: Axes, query: PanelQuery, prometheus: Prometheus, at: float) -> None:
    """One number, as it was at the height of the load."""
    axes.set_axis_off()
    values = list(prometheus.query(query.expr, at).values())
    text = FORMATTERS[query.unit](values[0]) if values else "–"
    axes.text(0.5, 0.35, text, ha="center", va="center", fontsize=17, transform=axes.transAxes)
    axes.text(0.5, 0.85, query.panel, ha="center", fontsize=8, transform=axes.transAxes)


def draw_panel(
    axes: Axes, queries: Sequence[PanelQuery], prometheus: Prometheus, start: float, end: float
) -> None:
    """All series of a panel over time that are not always 0; the legend names the largest."""
    lines: list[tuple[float, str]] = []
    for query in queries:
        for series in prometheus.query_range(query.expr, start, end, 1.0):
            known = [(at, value) for at, value in series.samples if not math.isnan(value)]
            if not any(value for _, value in known):
                continue
            times, values = zip(*known, strict=True)
            name = query.name(series.labels)
            axes.plot([at - start for at in times], values, linewidth=0.9, label=name)
            lines.append((sum(values) / len(values), name))
    axes.set_title(queries[0].panel, fontsize=8.5, loc="left", pad=3)
    axes.set_xlim(0, end - start)
    axes.set_ylim(bottom=0)
    formatter = FORMATTERS[queries[0].unit]
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatter(value)))
    axes.tick_params(labelsize=6, length=2)
    axes.grid(alpha=0.25, linewidth=0.5)
    draw_legend(axes, [name for _, name in sorted(lines, reverse=True)])


def draw_legend(axes: Axes, names: Sequence[str]) -> None:
    """Below the plot, in the order of size; what does not fit is counted."""
    by_name = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    shown = list(names[:MAX_LEGEND])
    handles = [by_name[name] for name in shown]
    if len(names) > MAX_LEGEND:
        shown.append(f"and {len(names) - MAX_LEGEND} more")
        handles.append(Line2D([], [], linestyle="none"))
    axes.legend(
        handles,
        shown,
        fontsize=5.5,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        frameon=False,
        handlelength=1,
        columnspacing=1,
        labelspacing=0.2,
    )


def draw(prometheus: Prometheus, start: float, end: float, out: Path) -> None:
    """Every panel, in the dashboard's order."""
    queries = dashboard_queries(WINDOW_S)
    panels = [list(group) for _, group in groupby(queries, key=lambda query: query.panel)]
    stats = [panel for panel in panels if panel[0].row == "Now"]
    graphs = [panel for panel in panels if panel[0].row != "Now"]
    num_rows = math.ceil(len(graphs) / COLUMNS)
    figure = Figure(figsize=(12, 1.6 + 2.1 * num_rows), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[0.6, 2.1 * num_rows])
    head, body = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    at_its_height = start + sum(length_s for _, length_s in PHASES) - 2
    numbers = list(head.subplots(1, len(stats), squeeze=False).flat)
    for axes, (query,) in zip(numbers, stats, strict=True):
        draw_stat(axes, query, prometheus, at_its_height)
    cells = list(body.subplots(num_rows, COLUMNS, squeeze=False).flat)
    for axes, panel in zip(cells, graphs, strict=False):
        draw_panel(axes, panel, prometheus, start, end)
    for axes in cells[len(graphs) :]:
        axes.set_axis_off()
    figure.suptitle(CAPTION, fontsize=9)
    figure.savefig(out, dpi=110)
    picture = Image.open(out).convert("RGB")
    picture.quantize(MAX_COLORS, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    """Serve, scrape, load, draw."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT.png")
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("prometheus is not installed: apt-get install prometheus")
    limits = ("--max-num-seqs", "6", "--kv-cache-tokens", "640", "--log-level", "warning")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            serving(None, folder / "server.log", *limits) as served,
            prometheus_scraping(program, served.url, folder) as prometheus,
        ):
            start = prometheus.next_scrape()
            put_load_on(served)
            time.sleep(REST_S)
            draw(prometheus, start, prometheus.next_scrape(), Path(sys.argv[1]))


if __name__ == "__main__":
    main()

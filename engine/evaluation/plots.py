"""A result as pictures; matplotlib comes with the extra `plots`.

Backgrounds are transparent and text is of a middle grey, so that a page may be light or dark.
Colours are Okabe and Ito's, which the colour-blind tell apart; markers and hatches differ too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from engine.evaluation.card import timed_settings
from engine.evaluation.results import Evaluation, SpeedResult, TimePerToken

DPI = 110
GREY = "#808890"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
MARKERS = "osD^vPX"
"""One more than there are colours: together they tell many more lines apart than six."""
MAX_LINEAR_RATIO = 20.0
"""Values further apart than that go on a logarithmic axis."""
STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 14,
    "markeredgecolor": GREY,
    "linestyle": "none",
}
STYLE: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.framealpha": 0.0,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "hatch.color": "#ffffff70",
    "hatch.linewidth": 0.8,
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

PARTS: tuple[tuple[str, Callable[[TimePerToken], float], str], ...] = (
    ("draft layers", lambda time: time.draft_layers_ms, ""),
    ("draft head", lambda time: time.draft_head_ms, "//"),
    ("layers", lambda time: time.layers_ms, ""),
    ("head", lambda time: time.head_ms, "\\\\"),
    ("Python, outside the backend", lambda time: time.outside_ms, ""),
)


def write_plots(evaluation: Evaluation, folder: Path) -> dict[str, Path]:
    """Draw what the result has figures for: `quality`, `acceptance` and `time`, as PNG files.

    Returns their paths by these names. Raises `OSError` where they cannot be written.
    """
    draw: dict[str, Callable[[Evaluation], Figure]] = {}
    if evaluation.speeds:
        draw["quality"] = _quality
    if any(each.drafting is not None for each in evaluation.exits):
        draw["acceptance"] = _acceptance
    if evaluation.speeds:
        draw["time"] = _time
    written: dict[str, Path] = {}
    with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        for name, make in draw.items():
            figure = make(evaluation)
            written[name] = folder / f"{name}.png"
            figure.savefig(written[name], dpi=DPI, pil_kwargs={"optimize": True})
            plt.close(figure)
    return written


# --- quality against speed --------------------------------------------------------------------


def _quality(evaluation: Evaluation) -> Figure:
    """Each exit's perplexity over its speed; one line for each batch size."""
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    perplexities = {
        each.exit_layer: each.perplexity
        for each in evaluation.exits
        if math.isfinite(each.perplexity)
    }
    for index, size in enumerate(evaluation.batch_sizes):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        places = [
            (speed.tokens_per_s, perplexity, exit_layer)
            for exit_layer, perplexity in perplexities.items()
            if (speed := evaluation.plain_speed(exit_layer, size)) is not None
        ]
        axis.plot(
            [rate for rate, *_ in places],
            [perplexity for _, perplexity, _ in places],
            color=colour,
            marker=marker,
            label=f"{size} sequence{'s'[: size != 1]}",
        )
        for rate, perplexity, exit_layer in places:
            axis.annotate(
                str(exit_layer),
                (rate, perplexity),
                # To the left: the line goes up and to the right.
                xytext=(-7, 4),
                textcoords="offset points",
                ha="right",
                fontsize=8.5,
            )
        best = _best_drafted(evaluation, size)
        if best is not None and evaluation.exits[-1].exit_layer in perplexities:
            axis.plot([best.tokens_per_s], [evaluation.exits[-1].perplexity], color=colour, **STAR)
    if any(speed.draft_exit_layer is not None for speed in evaluation.speeds):
        axis.plot([], [], color="none", label="all layers, drafted at best", **STAR)
    rates = [speed.tokens_per_s for speed in evaluation.speeds if speed.draft_exit_layer is None]
    if not _go_log(axis.set_xscale, axis.xaxis, rates):
        axis.set_xlim(left=0)
    _go_log(axis.set_yscale, axis.yaxis, list(perplexities.values()))
    axis.set_xlabel("tokens per second, all sequences together")
    axis.set_ylabel("perplexity (lower is better)")
    axis.set_title("Quality against speed; numbers are exit layers")
    axis.grid()
    axis.legend(fontsize=8.5)
    return figure


def _best_drafted(evaluation: Evaluation, size: int) -> SpeedResult | None:
    drafted = [
        speed
        for speed in evaluation.speeds
        if speed.draft_exit_layer is not None and speed.batch_size == size
    ]
    return max(drafted, key=lambda speed: speed.speedup, default=None)


def _go_log(set_scale: Callable[[str], None], axis: Axis, values: Sequence[float]) -> bool:
    """Make an axis logarithmic if its values are far apart; its ticks are plain numbers."""
    is_wide = bool(values) and max(values) > MAX_LINEAR_RATIO * min(values)
    if is_wide:
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    return is_wide


def _plain(value: float) -> str:
    """A tick's number, without exponents."""
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.4g}"


# --- acceptance -------------------------------------------------------------------------------


def _acceptance(evaluation: Evaluation) -> Figure:
    """By depth: agreement and drafts accepted. By position: a map of shares."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(1, 1.25)
    )
    _by_depth(left, evaluation)
    _by_position(figure, right, evaluation)
    return figure


def _by_depth(axis: Axes, evaluation: Evaluation) -> None:
    drafters = [each for each in evaluation.exits if each.drafting is not None]
    lines: tuple[tuple[str, list[tuple[int, float]]], ...] = (
        (
            "agrees with full depth",
            [(each.exit_layer, each.agreement) for each in evaluation.exits],
        ),
        (
            "first draft accepted",
            [
                (each.exit_layer, each.drafting.accepted_by_position[0])
                for each in drafters
                if each.drafting and each.drafting.accepted_by_position
            ],
        ),
        (
            f"of {evaluation.method.num_speculations} drafts accepted",
            [
                (each.exit_layer, each.drafting.acceptance_rate)
                for each in drafters
                if each.drafting
            ],
        ),
    )
    for index, (label, points) in enumerate(lines):
        axis.plot(
            [place for place, _ in points],
            [100 * share for _, share in points],
            color=COLOURS[index],
            marker=MARKERS[index],
            label=label,
        )
    axis.set_xticks([each.exit_layer for each in evaluation.exits])
    axis.set_xlabel("exit layer")
    axis.set_ylabel("share, %")
    axis.set_ylim(0, 103)
    axis.set_title("Acceptance by depth")
    axis.grid()
    axis.legend(fontsize=8.5, loc="lower right")


def _by_position(figure: Figure, axis: Axes, evaluation: Evaluation) -> None:
    drafters = [each for each in evaluation.exits if each.drafting is not None]
    length = max(len(each.drafting.accepted_by_position) for each in drafters if each.drafting)
    shares = np.full((len(drafters), length), np.nan)
    for row, each in enumerate(drafters):
        assert each.drafting is not None
        by_position = each.drafting.accepted_by_position
        shares[row, : len(by_position)] = by_position
    image = axis.imshow(
        100 * shares, cmap="cividis", vmin=0, vmax=100, aspect="auto", origin="lower"
    )
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            # On the light half of the map black is read, on the dark half white.
            colour = "black" if share > 0.5 else "white"
            axis.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour,
                fontsize=9,
            )  # fmt: skip
    axis.set_xticks(range(length), [str(position + 1) for position in range(length)])
    axis.set_yticks(range(len(drafters)), [str(each.exit_layer) for each in drafters])
    axis.set_xlabel("position of the draft in its round")
    axis.set_ylabel("exit layer")
    axis.set_title("Rounds in which the draft was accepted, %")
    bar = figure.colorbar(image, ax=axis, pad=0.02)
    bar.outline.set_edgecolor(GREY)  # pyright: ignore[reportCallIssue]


# --- time -------------------------------------------------------------------------------------


def _time(evaluation: Evaluation) -> Figure:
    """Stacked bars: milliseconds per token by setting, a panel for the extreme batch sizes."""
    sizes = sorted({evaluation.batch_sizes[0], evaluation.batch_sizes[-1]})
    settings = {size: list(timed_settings(evaluation, size)) for size in sizes}
    num_bars = max(len(listed) for listed in settings.values())
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(10, 1.6 + 0.34 * num_bars), layout="constrained", squeeze=False
    )
    for axis, size in zip(panels[0], sizes, strict=True):
        labels = [label for label, _ in settings[size]]
        speeds = [speed for _, speed in settings[size]]
        left = np.zeros(len(speeds))
        for index, (part, value_of, hatch) in enumerate(PARTS):
            widths = np.array([value_of(speed.time) for speed in speeds])
            axis.barh(
                labels, widths, left=left, color=COLOURS[index], hatch=hatch, linewidth=0,
                label=part,
            )  # fmt: skip
            left += widths
        axis.margins(y=0.02)
        axis.invert_yaxis()
        axis.set_xlabel("milliseconds per token, all sequences together")
        axis.set_title(f"{size} sequence{'s'[: size != 1]}")
        axis.grid(axis="x")
        axis.set_axisbelow(True)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(PARTS), fontsize=8.5)
    return figure

"""How `bitskip eval` shows its result on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from engine.evaluation.results import BestDraft, Evaluation, SpeedResult


def print_evaluation(console: Console, evaluation: Evaluation, *, was_saved: bool) -> None:
    """Everything, the warnings last, where they are seen."""
    console.print(_exits(evaluation), "")
    if evaluation.speeds:
        console.print(_drafting(evaluation), "")
    if evaluation.best_draft is not None:
        console.print(_advice(evaluation.best_draft, was_saved), soft_wrap=True)
    for warning in evaluation.warnings:
        console.print(f"warning: {escape(warning)}", style="yellow", soft_wrap=True)


def _exits(evaluation: Evaluation) -> Table:
    method, text = evaluation.method, evaluation.text
    table = _table(
        f"{text.num_tokens:,} tokens of {text.num_documents} documents; tokens per round with "
        f"{method.num_speculations} drafts"
    )
    for column in ("exit", "perplexity", "agreement", "acceptance", "per round"):
        table.add_column(column, justify="right", overflow="fold")
    for size in evaluation.batch_sizes:
        table.add_column(f"tok/s ×{size}", justify="right", overflow="fold")
    for each in evaluation.exits:
        drafting = each.drafting
        plain = [evaluation.plain_speed(each.exit_layer, size) for size in evaluation.batch_sizes]
        table.add_row(
            str(each.exit_layer),
            f"{each.perplexity:.2f}",
            f"{each.agreement:.1%}",
            "" if drafting is None else f"{drafting.acceptance_rate:.1%}",
            "" if drafting is None else f"{drafting.mean_acceptance_length:.2f}",
            *("" if speed is None else f"{speed.tokens_per_s:,.0f}" for speed in plain),
        )
    return table


def _drafting(evaluation: Evaluation) -> Table:
    table = _table("speed-up by drafting (best number of drafts)")
    table.add_column("draft exit", justify="right", overflow="fold")
    for size in evaluation.batch_sizes:
        table.add_column(f"×{size}", justify="right", overflow="fold")
        table.add_column("auto", justify="right", overflow="fold")
    for each in evaluation.exits[:-1]:
        cells: list[str] = []
        for size in evaluation.batch_sizes:
            cells.append(_speedup(evaluation.best_fixed(each.exit_layer, size)))
            cells.append(_speedup(evaluation.auto(each.exit_layer, size)))
        table.add_row(str(each.exit_layer), *cells)
    return table


def _speedup(speed: SpeedResult | None) -> str:
    if speed is None:
        return ""
    count = "" if speed.num_speculations == "auto" else f" ({speed.num_speculations})"
    return f"{speed.speedup:.2f}{count}"


def _advice(best: BestDraft, was_saved: bool) -> str:
    if best.num_speculations == "auto":
        count = "as many drafts as pay"
    else:
        count = f"{best.num_speculations} draft{'s'[: best.num_speculations != 1]} per round"
    how = "measured" if best.is_measured else "predicted"
    saved = "written into config.json" if was_saved else "--save-draft-exit keeps it"
    advice = (
        f"best draft exit: {best.exit_layer}, with {count} {best.speedup:.2f} times as fast as "
        f"without, as {how} ({saved})"
    )
    return advice if best.speedup > 1 else f"{advice}: drafting does not pay"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False)

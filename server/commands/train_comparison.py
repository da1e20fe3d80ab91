"""What training did to the exits of the checkpoint that it went on from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from engine.config import EngineConfig

if TYPE_CHECKING:
    from engine.evaluation.scores import ModelScores


def compare_exits(before: Path, after: Path, data: Path, exits: Sequence[int]) -> None:
    """Print both models' exits on held-out documents, as `bitskip eval` measures them."""
    from engine.documents import read_documents

    documents = read_documents(data)
    table = Table(title="held-out documents, before → after training")
    for column in ("exit", "perplexity", "agreement", "draft acceptance", "tokens/round"):
        table.add_column(column, justify="right")
    with Console(stderr=True).status("measuring the exits before and after"):
        old, new = (_scores(path, documents, exits) for path in (before, after))
    for was, now in zip(old.exits, new.exits, strict=True):
        table.add_row(
            str(now.exit_layer),
            f"{was.perplexity:.2f} → {now.perplexity:.2f}",
            f"{was.agreement:.1%} → {now.agreement:.1%}",
            _change(was.draft_acceptance_rate, now.draft_acceptance_rate, ".1%"),
            _change(was.mean_acceptance_length, now.mean_acceptance_length, ".2f"),
        )
    Console().print(table)


def _scores(path: Path, documents: Sequence[str], exits: Sequence[int]) -> ModelScores:
    from engine.build import load_model
    from engine.evaluation.scores import score_model

    model = load_model(path, EngineConfig())
    try:
        return score_model(model, documents, exits=exits)
    finally:
        model.backend.close()


def _change(was: float | None, now: float | None, spec: str) -> str:
    return "" if was is None or now is None else f"{was:{spec}} → {now:{spec}}"

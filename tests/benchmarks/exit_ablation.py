"""What layer dropout and exit loss are worth: small models trained with and without each.

    python tests/benchmarks/exit_ablation.py WORK --data stories.txt.xz:4 --tokens 2000000

Four recipes times the seeds, from scratch, on equal tokens, one after the other; a run that was
interrupted goes on. The table is in Markdown: full depth's perplexity on the held-out documents,
and each exit's agreement with it and draft acceptance, mean over seeds (and their range).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.build import load_model
from engine.config import EngineConfig, ModelConfig
from engine.documents import read_documents
from engine.evaluation.scores import ModelScores, score_model
from engine.training.data import DataSource, prepare_data
from engine.training.recipe import TrainingConfig
from engine.training.trainer import train

MODEL = ModelConfig(
    vocab_size=4096,
    hidden_size=192,
    num_layers=6,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=384,
    max_position_embeddings=256,
    eos_token_ids=(4095,),
)
RECIPE: dict[str, Any] = {
    "batch_tokens": 2048,
    "short_context": 128,
    "short_fraction": 0.75,
    "optimizer": "muon",
    "learning_rate": 4e-3,
    "learning_rate_schedule": "wsd",
    "decay_share": 0.4,
    "final_learning_rate_share": 0.0,
    "warmup_steps": 30,
    "precision": "bfloat16",
    "compile": True,
}
# Of twelve layers the card drops one on average: the same share of six.
DROPOUT: dict[str, dict[str, Any]] = {
    "none": {"layer_dropout": "none"},
    "card": {"layer_dropout": "card", "layer_dropout_sum": 0.5},
}
EXIT_LOSS: dict[str, dict[str, Any]] = {
    "none": {"exit_loss_weight": 0.0},
    "0.3, rotating": {"exit_loss_weight": 0.3},
}
EXITS = (1, 2, 3, 4, 5)


def main() -> None:
    """Train what is not trained yet, and print the table."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    sources = [DataSource.parse(text) for text in given.data]
    reports: dict[tuple[str, str], list[ModelScores]] = {}
    for seed, dropout, exit_loss in itertools.product(given.seeds, DROPOUT, EXIT_LOSS):
        config = TrainingConfig(
            model=MODEL,
            max_tokens=given.tokens,
            seed=seed,
            **RECIPE,
            **DROPOUT[dropout],
            **EXIT_LOSS[exit_loss],
        )
        out = given.work / f"{dropout}-{exit_loss.split(',')[0]}-{seed}"
        # The same documents held out for every seed; the seed has first weights and dropout.
        prepare_data(out, sources, MODEL.vocab_size, num_heldout=150, seed=0)
        train(config, out)
        model = load_model(out / "model", EngineConfig(), threads=given.threads)
        documents = read_documents(given.heldout or out / "heldout.txt")
        reports.setdefault((dropout, exit_loss), []).append(
            score_model(model, documents, exits=EXITS)
        )
    print(_table(reports))


def _table(reports: dict[tuple[str, str], list[ModelScores]]) -> str:
    head = ["layer dropout", "exit loss", "perplexity at full depth"]
    head += [f"exit {exit_layer}" for exit_layer in EXITS]
    lines = [_row(head), _row(["---"] * 2 + ["---:"] * (len(head) - 2))]
    for (dropout, exit_loss), seeds in reports.items():
        cells = [_cell([report.exits[-1].perplexity for report in seeds], "{:.2f}")]
        for index in range(len(EXITS)):
            agreement = _cell([report.exits[index].agreement for report in seeds], "{:.1%}")
            rates = [report.exits[index].draft_acceptance_rate or 0.0 for report in seeds]
            cells.append(f"{agreement} / {_cell(rates, '{:.1%}')}")
        lines.append(_row([dropout, exit_loss, *cells]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(values: Sequence[float], spec: str) -> str:
    """The mean, with half the range where there are several."""
    text = spec.format(sum(values) / len(values))
    if len(values) < 2:
        return text
    return f"{text} ± {spec.format((max(values) - min(values)) / 2)}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("work", type=Path, help="folder of the runs")
    parser.add_argument("--data", action="append", required=True, help="as bitskip train's")
    parser.add_argument("--heldout", type=Path, help="documents to score; the runs' by default")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

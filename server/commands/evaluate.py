"""`bitskip eval`: the table of a model's exits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engine.config import EngineConfig
from server.commands import clean_errors, parse_exits


def evaluate(
    data: Annotated[
        Path, typer.Option(help="Text file (.xz too), documents separated by <|endoftext|> lines.")
    ],
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint directory; the bundled demo by default.")
    ] = None,
    exits: Annotated[
        str, typer.Option(help="Exit layers, as in 3,6,9; by default the quarters of the depth.")
    ] = "",
    num_speculations: Annotated[
        int, typer.Option(min=1, max=16, help="Drafts per round when acceptance is measured.")
    ] = 4,
    num_prompts: Annotated[
        int, typer.Option(min=1, help="Documents whose beginnings are completed for that.")
    ] = 20,
    max_documents: Annotated[
        int | None, typer.Option(min=1, help="Score only so many documents.")
    ] = None,
    save_draft_exit: Annotated[
        bool,
        typer.Option(
            "--save-draft-exit", help="Write the best draft exit into the model's config.json."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    backend: Annotated[str, typer.Option(help="auto, or a backend's name.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the backend.")] = None,
) -> None:
    """Perplexity, agreement with full depth and draft acceptance, by exit layer."""
    from engine.build import demo_model_path, load_model
    from engine.documents import read_documents
    from engine.evaluation.draft_exit import best_draft_exit
    from engine.evaluation.draft_exit import save_draft_exit as save
    from engine.evaluation.report import evaluate as run

    chosen = parse_exits(exits)
    with clean_errors():
        documents = read_documents(data)[:max_documents]
        path, config = model or demo_model_path(), EngineConfig()
        loaded = load_model(path, config, backend, threads)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("scoring documents", total=len(documents))
            report = run(
                loaded,
                documents,
                exits=chosen,
                num_speculations=num_speculations,
                num_prompts=num_prompts,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        best = best_draft_exit(report, loaded.config, config.draft_vocab_size)
        if best is not None and save_draft_exit:
            save(path, best.exit_layer)
    console = Console()
    if as_json:
        console.print_json(json.dumps(report.to_dict()))
        return
    table = Table(
        title=f"{report.num_tokens:,} tokens of {report.num_documents} documents; "
        f"acceptance over {report.num_generated_tokens:,} greedy tokens, "
        f"{report.num_speculations} drafts per round"
    )
    for column in (
        "exit", "perplexity", "bits/byte", "agreement", "draft acceptance", "tokens/round",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for score in report.exits:
        acceptance, length = score.draft_acceptance_rate, score.mean_acceptance_length
        table.add_row(
            str(score.exit_layer),
            f"{score.perplexity:.2f}",
            f"{score.bits_per_byte:.3f}",
            f"{score.agreement:.1%}",
            "" if acceptance is None else f"{acceptance:.1%}",
            "" if length is None else f"{length:.2f}",
        )
    console.print(table)
    if best is not None:
        saved = "written into config.json" if save_draft_exit else "--save-draft-exit keeps it"
        console.print(
            f"best draft exit: {best.exit_layer}, with {best.num_speculations} drafts per round "
            f"{best.speedup:.2f} times as fast as without, as predicted ({saved})"
        )

"""`bitskip eval`: what each exit of a model is worth, as tables and as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.commands import clean_errors
from server.commands.evaluation_options import (
    DATA_HELP,
    BackendName,
    BatchSizes,
    EvaluationOptions,
    Exits,
    MaxDocuments,
    Name,
    NumNewTokens,
    NumPrompts,
    NumSpeculations,
    Quick,
    Repeats,
    Threads,
    check_writable,
    run_evaluation,
)


def _print_schema(wanted: bool) -> None:
    if wanted:
        from engine.evaluation.results import Evaluation

        # As files are written, where an infinite perplexity is null.
        schema = Evaluation.model_json_schema(mode="serialization")
        typer.echo(json.dumps(schema, indent=2, ensure_ascii=False))
        raise typer.Exit


def evaluate(
    data: Annotated[list[Path], typer.Option(help=DATA_HELP)],
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint directory; the bundled demo by default.")
    ] = None,
    exits: Exits = "",
    batch_sizes: BatchSizes = None,
    num_speculations: NumSpeculations = None,
    num_prompts: NumPrompts = None,
    num_new_tokens: NumNewTokens = None,
    repeats: Repeats = None,
    max_documents: MaxDocuments = None,
    quick: Quick = False,
    save_draft_exit: Annotated[
        bool,
        typer.Option(
            "--save-draft-exit", help="Write the best draft exit into the model's config.json."
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the result as JSON, for programs and for bitskip report; - prints it "
            "instead of tables.",
            show_default=False,
        ),
    ] = None,
    json_schema: Annotated[
        bool,
        typer.Option(
            "--json-schema",
            help="Print the JSON schema of such files, every field explained.",
            is_eager=True,
            callback=_print_schema,
        ),
    ] = False,
    name: Name = None,
    backend: BackendName = "auto",
    threads: Threads = None,
) -> None:
    """Perplexity, agreement, acceptance, speed and speed-up of every exit of a model.

    Drafts are greedy; settings take turns, and medians count. Some minutes on two cores; for a
    model card of it, see bitskip report.
    """
    options = EvaluationOptions(
        exits=exits,
        batch_sizes=batch_sizes,
        num_speculations=num_speculations,
        num_prompts=num_prompts,
        num_new_tokens=num_new_tokens,
        repeats=repeats,
        max_documents=max_documents,
        quick=quick,
    )
    to_stdout = json_file == Path("-")
    with clean_errors():
        if json_file is not None and not to_stdout:
            check_writable(json_file)
        evaluation = run_evaluation(
            model, data, options, name=name, backend=backend, threads=threads
        )
        if json_file is not None and not to_stdout:
            json_file.write_text(evaluation.to_json(), encoding="utf-8")
        if evaluation.best_draft is not None and save_draft_exit:
            from engine.build import demo_model_path
            from engine.evaluation.draft_exit import save_draft_exit as save

            save(model or demo_model_path(), evaluation.best_draft.exit_layer)
    if to_stdout:
        sys.stdout.write(evaluation.to_json())
    else:
        from server.commands.evaluation_tables import print_evaluation

        print_evaluation(Console(), evaluation, was_saved=save_draft_exit)

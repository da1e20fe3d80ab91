"""`bitskip inspect`: what a checkpoint holds, needs and promises, and whether to believe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from server.commands import clean_errors, parse_exits
from server.commands.inspect_tables import print_report


def inspect(
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint directory; the bundled demo by default.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text file (.xz too), documents separated by <|endoftext|> lines: perplexity, "
            "agreement and draft acceptance of every exit.",
            show_default=False,
        ),
    ] = None,
    exits: Annotated[
        str, typer.Option(help="Exit layers to look at with --data, as in 3,6,9; all by default.")
    ] = "",
    max_documents: Annotated[
        int | None, typer.Option(min=1, help="Score only so many documents.")
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Show every ternary tensor, not layers and kinds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    backend: Annotated[str, typer.Option(help="For --data: auto, or a backend's name.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the backend.")] = None,
) -> None:
    """Shapes, sizes, ternary weights and memory of a model, and what of it is not credible.

    Ends with exit code 1 when a tensor cannot be used; other warnings are for you to judge.
    """
    from engine.build import demo_model_path
    from engine.documents import read_documents
    from engine.evaluation.inspection import inspect_model, with_exits

    chosen = parse_exits(exits)
    with clean_errors():
        documents = None if data is None else read_documents(data)[:max_documents]
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("reading weights", total=None)

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            report = inspect_model(model or demo_model_path(), advance)
            # Nothing can be computed with a tensor that cannot be used.
            if documents is not None and report.is_usable:
                bar.update(task, description="scoring documents", completed=0, total=None)
                report = with_exits(
                    report,
                    documents,
                    exits=chosen,
                    backend=backend,
                    threads=threads,
                    progress=advance,
                )
    console = Console()
    if as_json:
        # JSON knows no infinity, which is what an untrained exit's perplexity may come to.
        plain = json.loads(json.dumps(report.to_dict()), parse_constant=lambda _: None)
        console.print_json(json.dumps(plain))
    else:
        print_report(console, report, show_tensors=tensors)
    if not report.is_usable:
        raise typer.Exit(1)

"""`bitskip report`: a model-card section, with pictures, of what `bitskip eval` measures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from engine.errors import BitSkipError, ConfigError
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

if TYPE_CHECKING:
    from engine.evaluation.results import Evaluation

RESULT_FILE = "evaluation.json"
REPORT_FILE = "report.md"


def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Result of bitskip eval --json, or a checkpoint directory, which is then "
            "evaluated on --data.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help=f"Folder for {REPORT_FILE}, its pictures and {RESULT_FILE}."
        ),
    ],
    data: Annotated[list[Path] | None, typer.Option(help=DATA_HELP, show_default=False)] = None,
    card: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Markdown page to put the section into as well, in place of the last one, or at "
            "its end; repeatable.",
            show_default=False,
        ),
    ] = None,
    plots: Annotated[bool, typer.Option(help="Draw pictures (needs the extra plots).")] = True,
    exits: Exits = "",
    batch_sizes: BatchSizes = None,
    num_speculations: NumSpeculations = None,
    num_prompts: NumPrompts = None,
    num_new_tokens: NumNewTokens = None,
    repeats: Repeats = None,
    max_documents: MaxDocuments = None,
    quick: Quick = False,
    name: Name = None,
    backend: BackendName = "auto",
    threads: Threads = None,
) -> None:
    """Write a model-card section: tables of every exit, and pictures of what it gives and costs.

    For a model of 24 layers, the card's own table has all layers, 18, 12 and 6; for any other,
    the quarters of its depth.
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
    with clean_errors():
        if plots and find_spec("matplotlib") is None:
            raise BitSkipError(
                "matplotlib is not installed: pip install 'bitskip-server[plots]', or --no-plots"
            )
        pages = {page: _page_text(page) for page in card or []}
        for file in (out / REPORT_FILE, *pages):
            check_writable(file)
        if source.is_dir():
            evaluation = run_evaluation(
                source, data or [], options, name=name, backend=backend, threads=threads
            )
        else:
            evaluation = _read(source, data, options, name)
        _write(evaluation, out, pages, plots)


def _page_text(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{page} is no page of text: {error}") from error


def _read(
    source: Path, data: list[Path] | None, options: EvaluationOptions, name: str | None
) -> Evaluation:
    """A result file; options that would have to measure something are refused."""
    from engine.evaluation.evaluation import EvaluationPlan
    from engine.evaluation.results import read_evaluation

    if data or options.plan() != EvaluationPlan():
        raise ConfigError(
            f"{source} is no directory: --data and what says how to measure go with a model"
        )
    evaluation = read_evaluation(source)
    if name is None:
        return evaluation
    model = evaluation.model.model_copy(update={"name": name})
    return evaluation.model_copy(update={"model": model})


def _write(evaluation: Evaluation, out: Path, pages: Mapping[Path, str], plots: bool) -> None:
    """Everything into `out`, and the section into `pages`, whose text is given."""
    from engine.evaluation.card import card_section, inserted

    pictures: Mapping[str, Path] = {}
    if plots:
        from engine.evaluation.plots import write_plots

        pictures = write_plots(evaluation, out)
    (out / RESULT_FILE).write_text(evaluation.to_json(), encoding="utf-8")
    title = f"## {evaluation.model.name}, measured"
    section = card_section(evaluation, _addresses(pictures, out))
    (out / REPORT_FILE).write_text(f"{title}\n\n{section}", encoding="utf-8")
    for page, text in pages.items():
        section = card_section(evaluation, _addresses(pictures, page.parent))
        page.write_text(inserted(text, section), encoding="utf-8")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for path in (out / REPORT_FILE, *pictures.values(), out / RESULT_FILE, *pages):
        console.print(f"wrote {path}", style="dim", markup=False)
    for warning in evaluation.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _addresses(pictures: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """How a page in `folder` names the pictures."""
    return {
        name: Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
        for name, path in pictures.items()
    }

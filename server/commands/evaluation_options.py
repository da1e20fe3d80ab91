"""What `bitskip eval` and `bitskip report` have in common: their options, and a run of both."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from engine.errors import ConfigError
from server.commands import parse_exits, parse_numbers

if TYPE_CHECKING:
    from engine.evaluation.evaluation import EvaluationPlan
    from engine.evaluation.results import Evaluation

DATA_HELP = (
    "Text file (.xz too), documents separated by <|endoftext|> lines; repeatable. Best one that "
    "the model was not trained on."
)

Exits = Annotated[
    str, typer.Option(help="Exit layers, as in 3,6,9; by default the quarters of the depth.")
]
BatchSizes = Annotated[
    str | None,
    typer.Option(
        help="Sequences at once when speed is measured, as in 1,4,8 (the default); an empty list, "
        "'', leaves speeds out.",
        show_default=False,
    ),
]
NumSpeculations = Annotated[
    str | None,
    typer.Option(
        help="Drafts per round whose speeds are measured, besides auto; acceptance is measured "
        "with the most. Default: 2,4,8.",
        show_default=False,
    ),
]
NumPrompts = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Documents whose beginnings are completed to measure acceptance. Default: 20.",
        show_default=False,
    ),
]
NumNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tokens per sequence in a sample of speed. Default: 128.", show_default=False
    ),
]
Repeats = Annotated[
    int | None,
    typer.Option(
        min=1, help="Samples of each speed; medians count. Default: 5.", show_default=False
    ),
]
MaxDocuments = Annotated[
    int | None, typer.Option(min=1, help="Read only so many documents.", show_default=False)
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick", help="A first look: 10 documents, batches of 1 and 4, 4 drafts, 2 samples."
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="What the result calls the model. Default: its directory's name.", show_default=False
    ),
]
BackendName = Annotated[str, typer.Option(help="auto, or a backend's name.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of the backend.", show_default=False)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """The options as given; None, or an empty text for exits: not given."""

    exits: str
    batch_sizes: str | None
    num_speculations: str | None
    num_prompts: int | None
    num_new_tokens: int | None
    repeats: int | None
    max_documents: int | None
    quick: bool

    def plan(self) -> EvaluationPlan:
        """What they ask for; raises `ConfigError` or `typer.BadParameter`, naming the option."""
        from engine.evaluation.evaluation import QUICK_PLAN, EvaluationPlan

        given: dict[str, Any] = {
            "exits": tuple(parse_exits(self.exits)) or None,
            "batch_sizes": _numbers(self.batch_sizes, "--batch-sizes"),
            "num_speculations": _numbers(self.num_speculations, "--num-speculations"),
            "num_prompts": self.num_prompts,
            "num_new_tokens": self.num_new_tokens,
            "num_repeats": self.repeats,
            "max_documents": self.max_documents,
        }
        base = QUICK_PLAN if self.quick else EvaluationPlan()
        return replace(base, **{name: value for name, value in given.items() if value is not None})


def run_evaluation(
    model: Path | None,
    data: list[Path],
    options: EvaluationOptions,
    *,
    name: str | None,
    backend: str,
    threads: int | None,
) -> Evaluation:
    """Evaluate a model (None: the bundled demo) on files, with a progress bar on stderr."""
    from engine.build import demo_model_path
    from engine.documents import read_documents
    from engine.evaluation.evaluation import evaluate

    if not data:
        raise ConfigError("there is no text to evaluate on: name a file with --data")
    plan = options.plan()
    documents = [document for file in data for document in read_documents(file)]
    path = model or demo_model_path()
    is_demo = path.resolve() == demo_model_path().resolve()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def advance(phase: str, done: int, total: int) -> None:
            bar.update(task, description=phase, completed=done, total=total)

        return evaluate(
            path,
            documents,
            plan,
            name=name or ("bitskip-demo" if is_demo else path.resolve().name),
            files=[file.name for file in data],
            backend=backend,
            threads=threads,
            progress=advance,
        )


def check_writable(file: Path) -> None:
    """Make the folder of a file that is to be written later; nothing else is left behind.

    Raises `OSError` that names what stands in the way: better before minutes are spent.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(
            errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename
        ) from error
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))


def _numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    return None if text is None else tuple(parse_numbers(text, option))

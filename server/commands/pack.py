"""`bitskip pack`: a checkpoint's ternary form, ready to load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.commands import clean_errors


def pack(
    model: Annotated[Path, typer.Argument(help="Directory of the checkpoint to pack.")],
    out: Annotated[Path, typer.Argument(help="Directory to write; must not hold a model yet.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Type of the tensors that stay floats.")
    ] = None,
) -> None:
    """Pack MODEL's ternary weights into OUT, a directory that loads fast and is small."""
    console = Console(stderr=True)
    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with clean_errors():
        from engine.checkpoint.packing import pack_checkpoint

        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("packing", total=None)

            def advance(num_done: int, num_total: int) -> None:
                bar.update(task, completed=num_done, total=num_total)

            pack_checkpoint(model, out, advance, **options)
        console.print(f"packed into {out}", highlight=False)

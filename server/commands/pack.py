"""`bitskip pack`: a checkpoint's ternary form, ready to load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from server.commands import clean_errors


def pack(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Directory of the checkpoint to pack.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Directory to write; must not hold a model yet.")
    ],
    dtype: Annotated[
        str,
        typer.Option(help="Type of the embedding and the head: keep the source's, or fp16."),
    ] = "keep",
) -> None:
    """Pack MODEL's ternary weights into OUT, a directory that loads fast and is small."""
    if dtype not in ("keep", "fp16"):
        raise typer.BadParameter("must be keep or fp16", param_hint="--dtype")
    console = Console(stderr=True)
    columns = (TextColumn("packing"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with clean_errors():
        from engine.checkpoint.packing import pack_checkpoint

        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("packing", total=None)

            def advance(num_done: int, num_total: int) -> None:
                bar.update(task, completed=num_done, total=num_total)

            summary = pack_checkpoint(model, out, advance, dtype=dtype)
    num_ternary = summary.num_minus + summary.num_zero + summary.num_plus
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"packed {summary.num_linears} linears into {summary.path}: "
        f"{summary.source_bytes / 1e6:.1f} MB became {summary.packed_bytes / 1e6:.1f} MB; "
        f"{summary.num_zero / num_ternary:.0%} of the ternary weights are zero",
        markup=False,
    )

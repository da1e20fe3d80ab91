"""`bitskip export`: a checkpoint in the format of another program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from engine.errors import BitSkipError
from server.commands import clean_errors

if TYPE_CHECKING:
    from engine.checkpoint.gguf_export import ExportSummary


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Directory of the checkpoint, packed or not.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; must not exist yet.")],
    format: Annotated[str, typer.Option(help="Format of the file: gguf, for llama.cpp.")] = "gguf",
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Export only the first N layers, with the same final norm and head: a draft "
            "model for llama.cpp's own speculative decoding.",
        ),
    ] = None,
) -> None:
    """Write MODEL as one GGUF file, with which llama.cpp runs the same weights.

    Ternary weights stay what they are (TQ2_0), their scales are rounded to fp16, the embedding
    and the head to 8 bits (Q8_0).
    """
    if format != "gguf":
        raise typer.BadParameter("must be gguf", param_hint="--format")
    columns = (TextColumn("exporting"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with clean_errors():
        export_gguf = _exporter()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("exporting", total=None)

            def advance(num_done: int, num_total: int) -> None:
                bar.update(task, completed=num_done, total=num_total)

            summary = export_gguf(model, out, advance, num_layers=layers)
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"exported {summary.num_layers} layers to {summary.path}: "
        f"{summary.num_bytes / 1e6:.1f} MB; fp16 moved scales by at most "
        f"{summary.scale_error:.3%}",
        markup=False,
    )


def _exporter() -> Callable[..., ExportSummary]:
    """`export_gguf`; says what to install where the optional package is missing."""
    try:
        from engine.checkpoint.gguf_export import export_gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise BitSkipError(
            "the package gguf is not installed: pip install 'bitskip-server[export]'"
        ) from None
    return export_gguf

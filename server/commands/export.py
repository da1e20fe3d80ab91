"""`bitskip export`: a checkpoint in the format of another program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from engine.errors import BitSkipError
from server.commands import clean_errors

if TYPE_CHECKING:
    from engine.checkpoint.gguf_export import ExportSummary
    from engine.checkpoint.ternary import FloatDtype

FORMATS = ("gguf", "hf")
DTYPES = ("fp32", "bf16", "fp16")


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Directory of the checkpoint, packed or not.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File or directory to write; must not exist yet.")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="gguf: one file, for llama.cpp; hf: a Hugging Face directory, for transformers."
        ),
    ] = "gguf",
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="For gguf: export only the first N layers, with the same final norm and head: a "
            "draft model for llama.cpp's own speculative decoding.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="For hf: type of the floats, fp32, bf16 or fp16. Latent weights keep theirs. "
            "(default: fp32)",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write MODEL in another program's format.

    As GGUF, llama.cpp runs the same weights: ternary ones stay what they are (TQ2_0), their
    scales are rounded to fp16, the embedding and the head to 8 bits (Q8_0). As a Hugging Face
    directory, transformers does (`import engine.hf`), and so does this program: in fp32 nothing
    is rounded.
    """
    if format not in FORMATS:
        raise typer.BadParameter("must be gguf or hf", param_hint="--format")
    if dtype is not None and (format != "hf" or dtype not in DTYPES):
        reason = f"must be one of {', '.join(DTYPES)}" if format == "hf" else "is for --format hf"
        raise typer.BadParameter(reason, param_hint="--dtype")
    if layers is not None and format != "gguf":
        raise typer.BadParameter("is for --format gguf", param_hint="--layers")
    with clean_errors():
        text = (
            _export_gguf(model, out, layers) if format == "gguf" else _export_hf(model, out, dtype)
        )
    Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)


def _export_gguf(model: Path, out: Path, layers: int | None) -> str:
    export_gguf = _exporter()
    with _progress() as advance:
        summary = export_gguf(model, out, advance, num_layers=layers)
    return (
        f"exported {summary.num_layers} layers to {summary.path}: "
        f"{summary.num_bytes / 1e6:.1f} MB; fp16 moved scales by at most "
        f"{summary.scale_error:.3%}"
    )


def _export_hf(model: Path, out: Path, dtype: str | None) -> str:
    from engine.checkpoint.hf_export import export_huggingface

    with _progress() as advance:
        summary = export_huggingface(model, out, advance, dtype=cast("FloatDtype", dtype or "fp32"))
    text = f"exported {summary.weights} weights to {summary.path}: {summary.num_bytes / 1e6:.1f} MB"
    if summary.scale_error:
        text += f"; {dtype} moved scales by at most {summary.scale_error:.3%}"
    return text


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal, and what moves it: called with (bytes done, bytes in all)."""
    columns = (TextColumn("exporting"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("exporting", total=None)

        def advance(num_done: int, num_total: int) -> None:
            bar.update(task, completed=num_done, total=num_total)

        yield advance


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

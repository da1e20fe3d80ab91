"""`bitskip synth`: a full-size model for speed measurements, with the acceptance that one wants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from server.commands import clean_errors


def synth(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Directory to write; must not hold a model yet.")
    ],
    shape: Annotated[
        str,
        typer.Option(help="v1 (BitSkip v1 at full size), tiny, or LAYERSxHIDDEN as in 12x1024."),
    ] = "v1",
    agreement: Annotated[
        float | None,
        typer.Option(
            help="Share of single greedy drafts that the full model is to accept; measured by the "
            "engine. 0.85 by default."
        ),
    ] = None,
    draft_exit: Annotated[
        int | None,
        typer.Option(help="Layers that draft; a quarter of them by default.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="How far the measured agreement may lie from the wanted one.")
    ] = 0.01,
    residual_scale: Annotated[
        float | None,
        typer.Option(
            help="Factor of what the layers from the draft exit on add; skips the calibration "
            "that finds the one for --agreement."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same model.")] = 0,
    backend: Annotated[str, typer.Option(help="auto, or a backend's name.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the backend.")] = None,
) -> None:
    """Write a synthetic model of random weights into OUT, to measure speed with.

    Its text is made-up words, but it is as large as a real model, and its drafts are accepted as
    often as --agreement says.
    """
    if agreement is not None and residual_scale is not None:
        raise typer.BadParameter(
            "excludes --agreement: one follows from the other", param_hint="--residual-scale"
        )
    with clean_errors():
        from engine.evaluation.acceptance import DraftTally
        from engine.evaluation.synthetic.checkpoint import (
            Agreement,
            distinct_share,
            write_synthetic_checkpoint,
        )

        if residual_scale is not None:
            target = residual_scale
        else:
            target = Agreement(0.85 if agreement is None else agreement, tolerance)
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        columns = (
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("writing", total=None)

            def advance(num_done: int, num_total: int) -> None:
                bar.update(task, completed=num_done, total=num_total)
                if num_done == num_total and residual_scale is None:
                    bar.update(task, description="written; now calibrating")

            def report(scale: float, tally: DraftTally) -> None:
                console.print(
                    f"residual scale {scale:.5f}: {tally.num_accepted} of {tally.num_drafted} "
                    f"drafts accepted ({tally.acceptance_rate:.1%})",
                    markup=False,
                )

            model = write_synthetic_checkpoint(
                out,
                shape,
                draft_exit=draft_exit,
                seed=seed,
                target=target,
                backend=backend,
                threads=threads,
                progress=advance,
                report=report,
            )
    measured = ""
    if model.tally is not None:
        measured = (
            f"; agreement {model.tally.acceptance_rate:.4f}, "
            f"{distinct_share(model.tally.completions):.0%} of four-token runs distinct"
        )
    console.print(
        f"synthetic model of {model.num_bytes / 1e6:.1f} MB in {model.path}: draft exit "
        f"{model.draft_exit}, residual scale {model.residual_scale:.5g}{measured}",
        markup=False,
    )

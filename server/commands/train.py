"""`bitskip train`: the family's training recipe on plain text files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine.config import ModelConfig
from engine.errors import ConfigError
from server.commands import clean_errors


def _check_torch() -> None:
    from engine.backends.registry import has_torch

    if not has_torch():
        raise ConfigError("training needs torch: pip install 'bitskip-server[torch]'")


def train(
    out: Annotated[Path, typer.Argument(help="Folder of the run; an interrupted run resumes.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="FILE[:REPEATS[:MIN_EASY_SHARE]], may be given several times. Documents are "
            "separated by <|endoftext|> lines; .xz is read too. MIN_EASY_SHARE keeps documents "
            "of which this share of words occurs at least twice in the first file."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Length of the run, in minutes of training.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of the run, in steps.")] = None,
    layers: Annotated[int, typer.Option(min=2)] = 12,
    hidden: Annotated[int, typer.Option(min=8)] = 256,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    kv_heads: Annotated[int, typer.Option(min=1)] = 2,
    head_dim: Annotated[int, typer.Option(min=2)] = 32,
    feed_forward: Annotated[int, typer.Option(min=8)] = 512,
    vocabulary: Annotated[int, typer.Option(min=300, help="Tokens of the new tokenizer.")] = 4096,
    context: Annotated[int, typer.Option(min=16)] = 512,
    short_context: Annotated[
        int, typer.Option(min=8, help="Sequence length of the first part of the run.")
    ] = 256,
    short_fraction: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.8,
    batch_tokens: Annotated[int, typer.Option(min=16, help="Tokens per step.")] = 1024,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1.5e-3,
    warmup: Annotated[int, typer.Option(min=0, help="Warm-up steps.")] = 200,
    clip: Annotated[float, typer.Option(min=0.0, help="Gradient norm limit.")] = 1.0,
    exits: Annotated[
        str, typer.Option(help="Exits that get a loss, as in 3,6,9; all by default.")
    ] = "",
    exit_schedule: Annotated[
        str, typer.Option(help="all: every exit at every step; rotating: one after the other.")
    ] = "rotating",
    exit_loss_weight: Annotated[float, typer.Option(min=0.0)] = 0.3,
    layer_dropout: Annotated[
        float, typer.Option(min=0.0, help="Expected number of layers dropped per step.")
    ] = 1.0,
    heldout: Annotated[
        int, typer.Option(min=1, help="Documents of the first file kept out of training.")
    ] = 150,
    seed: Annotated[int, typer.Option()] = 0,
    compile: Annotated[bool, typer.Option(help="Compile the layers: faster steps.")] = False,
) -> None:
    """Train a model with layer dropout and early-exit loss; OUT/model is the result."""
    with clean_errors():
        _check_torch()
    from engine.training.data import DataSource, prepare_data
    from engine.training.recipe import TrainingConfig
    from engine.training.trainer import train as run

    try:
        trained_exits = tuple(int(part) for part in exits.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{exits!r} is not a list like 3,6,9", param_hint="--exits"
        ) from None
    if exit_schedule not in ("all", "rotating"):
        raise typer.BadParameter("must be all or rotating", param_hint="--exit-schedule")
    with clean_errors():
        config = TrainingConfig(
            model=ModelConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                num_layers=layers,
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                intermediate_size=feed_forward,
                max_position_embeddings=context,
                eos_token_ids=(vocabulary - 1,),
            ),
            batch_tokens=batch_tokens,
            short_context=short_context,
            short_fraction=short_fraction,
            learning_rate=learning_rate,
            warmup_steps=warmup,
            clip_norm=clip,
            exit_loss_weight=exit_loss_weight,
            exit_schedule="all" if exit_schedule == "all" else "rotating",
            trained_exits=trained_exits,
            layer_dropout_sum=layer_dropout,
            seed=seed,
            max_steps=steps,
            max_minutes=minutes,
            compile=compile,
        )
        sources = [DataSource.parse(text) for text in data or []]
        prepare_data(out, sources, vocabulary, heldout, seed)
        with Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %  loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[rate]:,.0f} tok/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=120.0,
        ) as bar:
            task = bar.add_task("train", total=1.0, step=0, loss=float("nan"), rate=0.0)

            def report(progress: float, entry: Mapping[str, Any]) -> None:
                bar.update(
                    task,
                    completed=progress,
                    step=entry["step"],
                    loss=entry["loss"],
                    rate=entry["tokens_per_s"],
                )

            run(config, out, report=report)
    typer.echo(f"model written to {out / 'model'}; next: bitskip pack {out / 'model'} OUT")

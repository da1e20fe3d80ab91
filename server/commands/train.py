"""`bitskip train`: the family's training recipe on plain text files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine.errors import ConfigError
from server.commands import clean_errors, parse_exits
from server.commands.train_comparison import compare_exits
from server.commands.train_model import (
    START_PANEL,
    ExitSchedule,
    LayerDropout,
    ModelShape,
    OptimizerName,
    Precision,
    RateSchedule,
    Variant,
    new_model,
    started_model,
)

if TYPE_CHECKING:
    from engine.training.recipe import TrainingConfig
    from engine.training.trainer import Report

_EXITS, _STEPS, _LENGTH = "Exits and layer dropout", "Steps", "Length of the run"


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
    heldout: Annotated[
        int, typer.Option(min=1, help="Documents of the first file kept out of training.")
    ] = 150,
    skip_tokens: Annotated[
        int,
        typer.Option(min=0, help="Begin so far into the data: where an earlier run on it ended."),
    ] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Go on from this checkpoint (latent, packed or dense), with its shape and "
            "tokenizer, to give it exits; its exits before and after are printed.",
            rich_help_panel=START_PANEL,
        ),
    ] = None,
    variant: Annotated[
        Variant | None,
        typer.Option(
            help="Numerics: v1 is ternary with 8-bit activations, v2 4-bit and v3 8-bit in a "
            "Hadamard basis, dense plain floats.",
            show_default="v1",
            rich_help_panel=START_PANEL,
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=2, show_default="12", rich_help_panel=START_PANEL)
    ] = None,
    hidden: Annotated[
        int | None, typer.Option(min=8, show_default="256", rich_help_panel=START_PANEL)
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, show_default="8", rich_help_panel=START_PANEL)
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option(min=1, show_default="2", rich_help_panel=START_PANEL)
    ] = None,
    head_dim: Annotated[
        int | None, typer.Option(min=2, show_default="32", rich_help_panel=START_PANEL)
    ] = None,
    feed_forward: Annotated[
        int | None, typer.Option(min=8, show_default="512", rich_help_panel=START_PANEL)
    ] = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(
            min=300,
            help="Tokens of the new tokenizer.",
            show_default="4096",
            rich_help_panel=START_PANEL,
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=16, show_default="512", rich_help_panel=START_PANEL)
    ] = None,
    exits: Annotated[
        str,
        typer.Option(
            help="Exits that get a loss, as in 3,6,9; all by default.", rich_help_panel=_EXITS
        ),
    ] = "",
    exit_schedule: Annotated[
        ExitSchedule,
        typer.Option(
            help="rotating: one exit after the other; gradual: the deepest first, one more after "
            "equal parts of the first half; all: every exit at every step.",
            rich_help_panel=_EXITS,
        ),
    ] = "rotating",
    exit_loss_weight: Annotated[
        float,
        typer.Option(min=0.0, help="0 leaves the exits untrained.", rich_help_panel=_EXITS),
    ] = 0.3,
    distill: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of an exit's loss that compares it with the last layer, not the text.",
            rich_help_panel=_EXITS,
        ),
    ] = 0.0,
    distill_temperature: Annotated[float, typer.Option(rich_help_panel=_EXITS)] = 1.0,
    layer_dropout: Annotated[
        LayerDropout,
        typer.Option(
            help="card: quadratic in depth, never the last layer; exponential: LayerSkip's, which "
            "grows over the run unless it goes --from a checkpoint; none.",
            rich_help_panel=_EXITS,
        ),
    ] = "card",
    layer_dropout_sum: Annotated[
        float,
        typer.Option(
            min=0.0, help="Layers dropped per step, on average (card).", rich_help_panel=_EXITS
        ),
    ] = 1.0,
    layer_dropout_max: Annotated[
        float,
        typer.Option(
            min=0.0, help="Probability of the last layer (exponential).", rich_help_panel=_EXITS
        ),
    ] = 0.1,
    batch_tokens: Annotated[
        int, typer.Option(min=16, help="Tokens per step.", rich_help_panel=_STEPS)
    ] = 1024,
    short_context: Annotated[
        int,
        typer.Option(
            min=8, help="Sequence length of the first part of the run.", rich_help_panel=_STEPS
        ),
    ] = 256,
    short_fraction: Annotated[float, typer.Option(min=0.0, max=1.0, rich_help_panel=_STEPS)] = 0.8,
    optimizer: Annotated[
        OptimizerName,
        typer.Option(
            help="adamw, or muon for the layers' matrices: more work, fewer steps.",
            rich_help_panel=_STEPS,
        ),
    ] = "adamw",
    learning_rate: Annotated[float, typer.Option(min=0.0, rich_help_panel=_STEPS)] = 1.5e-3,
    schedule: Annotated[
        RateSchedule,
        typer.Option(
            help="cosine, or wsd: constant, then falling over the last --decay-share. With wsd a "
            "run may be resumed with another length until it decays.",
            rich_help_panel=_STEPS,
        ),
    ] = "cosine",
    decay_share: Annotated[float, typer.Option(min=0.0, max=1.0, rich_help_panel=_STEPS)] = 0.2,
    warmup: Annotated[
        int, typer.Option(min=0, help="Warm-up steps.", rich_help_panel=_STEPS)
    ] = 200,
    clip: Annotated[
        float, typer.Option(min=0.0, help="Gradient norm limit.", rich_help_panel=_STEPS)
    ] = 1.0,
    precision: Annotated[
        Precision,
        typer.Option(
            help="float32, or bfloat16 for matrix products: faster where the CPU has it.",
            rich_help_panel=_STEPS,
        ),
    ] = "float32",
    compile: Annotated[
        bool, typer.Option(help="Compile the layers: faster steps.", rich_help_panel=_STEPS)
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="In minutes of training.", rich_help_panel=_LENGTH),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, rich_help_panel=_LENGTH)] = None,
    tokens: Annotated[int | None, typer.Option(min=1, rich_help_panel=_LENGTH)] = None,
) -> None:
    """Train a model with layer dropout and early-exit loss; OUT/model is the result."""
    shape = ModelShape(
        variant, layers, hidden, heads, kv_heads, head_dim, feed_forward, vocabulary, context
    )
    trained_exits = parse_exits(exits)
    with clean_errors():
        from engine.backends.registry import has_torch
        from engine.checkpoint.loader import load_checkpoint

        if not has_torch():
            raise ConfigError("training needs torch: pip install 'bitskip-server[torch]'")
        from engine.training.recipe import TrainingConfig
        from engine.training.trainer import train as run

        checkpoint = None if start is None else load_checkpoint(start)
        model = new_model(shape) if checkpoint is None else started_model(checkpoint, shape)
        config = TrainingConfig(
            model=model,
            batch_tokens=batch_tokens,
            short_context=short_context,
            short_fraction=short_fraction,
            optimizer=optimizer,
            learning_rate=learning_rate,
            learning_rate_schedule=schedule,
            decay_share=decay_share,
            warmup_steps=warmup,
            clip_norm=clip,
            exit_loss_weight=exit_loss_weight,
            exit_schedule=exit_schedule,
            trained_exits=tuple(trained_exits),
            distill_weight=distill,
            distill_temperature=distill_temperature,
            layer_dropout=layer_dropout,
            layer_dropout_sum=layer_dropout_sum,
            layer_dropout_max=layer_dropout_max,
            layer_dropout_grows=start is None,
            precision=precision,
            skip_tokens=skip_tokens,
            seed=seed,
            max_steps=steps,
            max_tokens=tokens,
            max_minutes=minutes,
            compile=compile,
        )
        _prepare_data(out, data or [], config, heldout, start)
        with _progress() as report:
            run(config, out, start=checkpoint, report=report)
        if start is not None:
            compare_exits(start, out / "model", out / "heldout.txt", trained_exits)
    typer.echo(f"model written to {out / 'model'}; next: bitskip pack {out / 'model'} OUT")


def _prepare_data(
    out: Path, data: Sequence[str], config: TrainingConfig, num_heldout: int, start: Path | None
) -> None:
    from engine.training.data import DataSource, prepare_data

    tokenizer_file, end_token_id = None, None
    if start is not None:
        tokenizer_file = start / "tokenizer.json"
        if not tokenizer_file.exists():
            raise ConfigError(f"{start} has no tokenizer.json to read the text with")
        end_token_id = next(iter(config.model.eos_token_ids), None)
    prepare_data(
        out,
        [DataSource.parse(text) for text in data],
        config.model.vocab_size,
        num_heldout,
        config.seed,
        tokenizer_file,
        end_token_id,
    )


@contextmanager
def _progress() -> Iterator[Report]:
    """A progress bar on standard error, and what moves it."""
    with Progress(
        TextColumn("step {task.fields[step]}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f} %  {task.fields[loss]}"),
        TextColumn("{task.fields[rate]:,.0f} tok/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=120.0,
    ) as bar:
        task = bar.add_task("train", total=1.0, step=0, loss="", rate=0.0)

        def report(progress: float, entry: Mapping[str, Any]) -> None:
            bar.update(
                task,
                completed=progress,
                step=entry["step"],
                loss=f"loss {entry['loss']:.3f}",
                rate=entry["tokens_per_s"],
            )

        yield report

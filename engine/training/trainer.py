"""The training loop: resumable to the step, logged as JSON lines, exported as safetensors.

Beside its data (`engine.training.data`) a run's folder holds `state.pt` (to resume), `log.jsonl`
(to plot) and, at the end, a Hugging Face checkpoint in `model/`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.names import published_name
from engine.errors import ConfigError
from engine.training.data import Stream, window_batch
from engine.training.initial import initial_model
from engine.training.losses import HeadLoss, head_loss, step_losses
from engine.training.modules import TrainableDecoder
from engine.training.optimizers import Optimizers
from engine.training.recipe import (
    TrainingConfig,
    learning_rate,
    step_context,
    step_dropped,
    step_exits,
)
from engine.training.state import Position, load_state, save_state, trim_log

_SAVE_EVERY_S = 120.0
_VALIDATE_EVERY_STEPS = 250
_VALIDATION_CONTEXT = 256
_NUM_VALIDATION_WINDOWS = 16

Report = Callable[[float, dict[str, Any]], None]
"""Called after every step with the run's progress (0 to 1) and the line of the log."""


def train(
    config: TrainingConfig,
    out: Path,
    *,
    start: Checkpoint | None = None,
    report: Report = lambda progress, entry: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run, or resume, a training run in `out`, and export the model at its end.

    `out` holds the data that `prepare_data` writes; a checkpoint to `start` from has the
    configuration's shape. `clock` gives seconds. Unless a run is measured in minutes, the
    parameters do not depend on interruptions. Raises `ConfigError` when data or state do not go
    with the configuration, and when the loss is no longer a number.
    """
    tokenizer_file = out / "tokenizer.json"
    stream: Stream = np.load(out / "stream.npy", mmap_mode="r")
    heldout: Stream = np.load(out / "heldout.npy")
    _check_data(config, tokenizer_file, stream)
    model = initial_model(config, start)
    head: HeadLoss = head_loss
    if config.compile:
        for layer in model.layers:
            layer.compile(dynamic=False)
        head = torch.compile(head_loss, dynamic=False)
    optimizers = Optimizers(model, config)
    state_file, log_file = out / "state.pt", out / "log.jsonl"
    position = load_state(state_file, model, optimizers, config)
    trim_log(log_file, position.step)
    last_save = clock()
    with log_file.open("a", encoding="utf-8") as log:
        while (progress := position.progress(config)) < 1.0:
            entry = _train_step(model, head, optimizers, config, stream, position, progress, clock)
            progress = position.progress(config)
            if position.step % _VALIDATE_EVERY_STEPS == 0 or progress >= 1.0:
                validation = validate(model, heldout)
                entry |= {"heldout": validation.losses, "agreement": validation.agreements}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            report(min(1.0, progress), entry)
            if clock() - last_save > _SAVE_EVERY_S:
                save_state(state_file, model, optimizers, position, config)
                last_save = clock()
    save_state(state_file, model, optimizers, position, config)
    export_checkpoint(model, tokenizer_file, out / "model")


def _check_data(config: TrainingConfig, tokenizer_file: Path, stream: Stream) -> None:
    vocab_size = Tokenizer.from_file(str(tokenizer_file)).get_vocab_size()
    # Published models may have rows that no token uses.
    if vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"{tokenizer_file} has {vocab_size} tokens, the model {config.model.vocab_size}"
        )
    if len(stream) <= config.batch_tokens:
        raise ConfigError(
            f"the training data has {len(stream)} tokens, too few for steps of "
            f"{config.batch_tokens}"
        )


def _train_step(
    model: TrainableDecoder,
    head: HeadLoss,
    optimizers: Optimizers,
    config: TrainingConfig,
    stream: Stream,
    position: Position,
    progress: float,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Train one step and advance `position`; returns the step's line of the log."""
    started = clock()
    context = step_context(config, progress)
    num_sequences = config.batch_tokens // context
    offset = config.skip_tokens + position.num_tokens
    window = window_batch(stream, offset, num_sequences, context)
    batch_BT = torch.from_numpy(window)
    targets_N = batch_BT[:, 1:].reshape(-1)
    depth = config.model.num_layers
    weights = step_exits(config, position.step, progress)
    dropped = step_dropped(config, position.step, progress)
    rate = learning_rate(config, position.step, progress)
    outputs = model(batch_BT[:, :-1], {depth, *weights}, dropped)
    losses = step_losses(model, config, outputs, targets_N, weights, head)
    losses.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm).item()
    if not math.isfinite(norm):
        raise ConfigError(
            f"the gradients of step {position.step + 1} are not finite: "
            "a lower learning_rate may help"
        )
    optimizers.step(rate)
    elapsed = clock() - started
    position.step += 1
    position.num_tokens += targets_N.numel()
    position.elapsed_s += elapsed
    return {
        "step": position.step,
        "num_tokens": position.num_tokens,
        "elapsed_s": round(position.elapsed_s, 2),
        "loss": round(losses.full.item(), 4),
        "exit_loss": round(losses.early.item(), 4),
        "exit_losses": {e: round(value.item(), 4) for e, value in losses.by_exit.items()},
        "context": context,
        "num_dropped": len(dropped),
        "learning_rate": rate,
        "grad_norm": round(norm, 4),
        "tokens_per_s": round(targets_N.numel() / elapsed, 1) if elapsed > 0 else 0.0,
    }


class Validation(NamedTuple):
    """How a model does on held-out text, by exit layer."""

    losses: dict[int, float]
    """Mean next-token loss, in nats."""
    agreements: dict[int, float]
    """Share of positions where the exit's likeliest token is that of full depth."""


@torch.no_grad()
def validate(model: TrainableDecoder, heldout: Stream) -> Validation:
    """Score the first held-out windows at a quarter, half, three quarters and all of the depth.

    Held-out text of less than a window is scored in one shorter window; without any, the result
    is empty.
    """
    depth = model.config.num_layers
    context = min(_VALIDATION_CONTEXT, model.config.max_position_embeddings, len(heldout) - 1)
    if context < 1:
        return Validation({}, {})
    exits = model.config.suggested_exits
    num_windows = min(_NUM_VALIDATION_WINDOWS, (len(heldout) - 1) // context)
    batch_BT = torch.from_numpy(window_batch(heldout, 0, num_windows, context))
    outputs = model(batch_BT[:, :-1], exits)
    targets_N = batch_BT[:, 1:].reshape(-1)
    final_N = model.logits(outputs[depth], depth).argmax(dim=-1)
    result = Validation({}, {})
    for exit_layer in exits:
        logits_NV = model.logits(outputs[exit_layer], exit_layer)
        loss = F.cross_entropy(logits_NV, targets_N).item()
        agreement = (logits_NV.argmax(dim=-1) == final_N).double().mean().item()
        result.losses[exit_layer] = round(loss, 4)
        result.agreements[exit_layer] = round(agreement, 4)
    return result


def export_checkpoint(model: TrainableDecoder, tokenizer_file: Path | None, out: Path) -> None:
    """Write a Hugging Face directory: float32 weights, config.json, tokenizer.json if given."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        published_name(name): tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = model.config if model.config.is_dense else replace(model.config, weights="latent")
    text = json.dumps(config.to_dict(), indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
    if tokenizer_file is not None:
        Tokenizer.from_file(str(tokenizer_file)).save(str(out / "tokenizer.json"))

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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine.checkpoint.names import published_name
from engine.errors import ConfigError
from engine.training.data import window_batch
from engine.training.modules import TrainableDecoder, parameter_groups
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
    report: Report = lambda progress, entry: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run, or resume, a training run in `out`, and export the model at its end.

    `out` holds the data that `prepare_data` writes. `clock` gives seconds. In a run measured in
    steps, the parameters do not depend on interruptions. Raises `ConfigError` when data or state
    do not go with the configuration, and when the loss is no longer a number.
    """
    tokenizer_file = out / "tokenizer.json"
    stream: NDArray[np.uint16] = np.load(out / "stream.npy", mmap_mode="r")
    heldout: NDArray[np.uint16] = np.load(out / "heldout.npy")
    _check_data(config, tokenizer_file, stream)
    # Only the initial weights are drawn from torch's generator, and the caller's is left alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = TrainableDecoder(config.model)
    if config.compile:
        for layer in model.layers:
            layer.compile(dynamic=False)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    state_file, log_file = out / "state.pt", out / "log.jsonl"
    position = load_state(state_file, model, optimizer, config)
    trim_log(log_file, position.step)
    last_save = clock()
    with log_file.open("a", encoding="utf-8") as log:
        while (progress := position.progress(config)) < 1.0:
            entry = _train_step(model, optimizer, config, stream, position, progress, clock)
            progress = position.progress(config)
            if position.step % _VALIDATE_EVERY_STEPS == 0 or progress >= 1.0:
                entry["heldout"] = validate(model, heldout)
            log.write(json.dumps(entry) + "\n")
            log.flush()
            report(min(1.0, progress), entry)
            if clock() - last_save > _SAVE_EVERY_S:
                save_state(state_file, model, optimizer, position, config)
                last_save = clock()
    save_state(state_file, model, optimizer, position, config)
    export_checkpoint(model, tokenizer_file, out / "model")


def _check_data(config: TrainingConfig, tokenizer_file: Path, stream: NDArray[np.uint16]) -> None:
    vocab_size = Tokenizer.from_file(str(tokenizer_file)).get_vocab_size()
    if vocab_size != config.model.vocab_size:
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
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    stream: NDArray[np.uint16],
    position: Position,
    progress: float,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Train one step and advance `position`; returns the step's line of the log."""
    started = clock()
    context = step_context(config, progress)
    num_sequences = config.batch_tokens // context
    window = window_batch(stream, position.num_tokens, num_sequences, context)
    batch_BT = torch.from_numpy(window)
    targets_N = batch_BT[:, 1:].reshape(-1)
    depth = config.model.num_layers
    weights = step_exits(config, position.step)
    dropped = step_dropped(config, position.step)
    rate = learning_rate(config, position.step, progress)
    for group in optimizer.param_groups:
        group["lr"] = rate
    outputs = model(batch_BT[:, :-1], {depth, *weights}, dropped)
    loss = model.exit_loss(outputs[depth], targets_N, depth)
    exit_losses = {e: model.exit_loss(outputs[e], targets_N, e) for e in weights}
    early = torch.stack([weights[e] * exit_losses[e] for e in weights]).sum()
    (loss + config.exit_loss_weight * early).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm).item()
    if not math.isfinite(norm):
        raise ConfigError(
            f"the gradients of step {position.step + 1} are not finite: "
            "a lower learning_rate may help"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    elapsed = clock() - started
    position.step += 1
    position.num_tokens += targets_N.numel()
    position.elapsed_s += elapsed
    return {
        "step": position.step,
        "num_tokens": position.num_tokens,
        "elapsed_s": round(position.elapsed_s, 2),
        "loss": round(loss.item(), 4),
        "exit_loss": round(early.item(), 4),
        "exit_losses": {e: round(value.item(), 4) for e, value in exit_losses.items()},
        "context": context,
        "num_dropped": len(dropped),
        "learning_rate": rate,
        "grad_norm": round(norm, 4),
        "tokens_per_s": round(targets_N.numel() / elapsed, 1) if elapsed > 0 else 0.0,
    }


@torch.no_grad()
def validate(model: TrainableDecoder, heldout: NDArray[np.uint16]) -> dict[int, float]:
    """Mean next-token loss, in nats, by exit layer, over the first held-out windows.

    Held-out text of less than a window is scored in one shorter window; without any, the result
    is empty.
    """
    depth = model.config.num_layers
    context = min(_VALIDATION_CONTEXT, model.config.max_position_embeddings, len(heldout) - 1)
    if context < 1:
        return {}
    exits = sorted({max(1, depth * share // 4) for share in (1, 2, 3, 4)})
    num_windows = min(_NUM_VALIDATION_WINDOWS, (len(heldout) - 1) // context)
    batch_BT = torch.from_numpy(window_batch(heldout, 0, num_windows, context))
    outputs = model(batch_BT[:, :-1], exits)
    targets_N = batch_BT[:, 1:].reshape(-1)
    return {e: round(model.exit_loss(outputs[e], targets_N, e).item(), 4) for e in exits}


def export_checkpoint(model: TrainableDecoder, tokenizer_file: Path, out: Path) -> None:
    """Write a Hugging Face directory: latent float32 weights, config.json and tokenizer.json."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        published_name(name): tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(replace(model.config, weights="latent").to_dict(), indent=2)
    (out / "config.json").write_text(config + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.save(str(out / "tokenizer.json"))

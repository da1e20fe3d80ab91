"""The training loop: resumable to the step, logged as JSON lines, exported as safetensors.

A run's folder holds `tokenizer.json`, `stream.npy`, `heldout.txt`, `state.pt` (to resume),
`log.jsonl` (to plot) and, at the end, a Hugging Face checkpoint in `model/`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine.checkpoint.names import published_name
from engine.training.data import (
    window_batch,
)
from engine.training.modules import TrainableDecoder, parameter_groups
from engine.training.recipe import (
    TrainingConfig,
    learning_rate,
    step_context,
    step_dropped,
    step_exits,
)

logger = logging.getLogger(__name__)

_SAVE_EVERY_S = 120.0
_VALIDATE_EVERY_STEPS = 250
_NUM_VALIDATION_WINDOWS = 16


@dataclass(slots=True)
class _Position:
    """Where a run stands."""

    step: int = 0
    num_tokens: int = 0
    elapsed_s: float = 0.0

    def progress(self, config: TrainingConfig) -> float:
        """0 at the start of the run, 1 at its end."""
        if config.max_steps is not None:
            return self.step / config.max_steps
        assert config.max_minutes is not None
        return self.elapsed_s / (60.0 * config.max_minutes)


def train(config: TrainingConfig, out: Path) -> None:
    """Run, or resume, a training run in `out`, and export the model at its end."""
    torch.manual_seed(config.seed)
    stream: NDArray[np.uint16] = np.load(out / "stream.npy", mmap_mode="r")
    heldout: NDArray[np.uint16] = np.load(out / "heldout.npy")
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
    position = _resume(out / "state.pt", model, optimizer)
    columns = (
        TextColumn("step {task.fields[step]}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f} %  loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[rate]:.0f} tok/s"),
        TimeElapsedColumn(),
    )
    last_save = time.monotonic()
    with Progress(*columns) as bar, (out / "log.jsonl").open("a", encoding="utf-8") as log:
        task = bar.add_task("train", total=1.0, step=position.step, loss=float("nan"), rate=0.0)
        while (progress := position.progress(config)) < 1.0:
            entry = _train_step(model, optimizer, config, stream, position, progress)
            if position.step % _VALIDATE_EVERY_STEPS == 0:
                entry["heldout"] = validate(model, heldout)
            log.write(json.dumps(entry) + "\n")
            log.flush()
            bar.update(
                task,
                completed=progress,
                step=position.step,
                loss=entry["loss"],
                rate=entry["tokens_per_s"],
            )
            if time.monotonic() - last_save > _SAVE_EVERY_S:
                _save(out / "state.pt", model, optimizer, position)
                last_save = time.monotonic()
    _save(out / "state.pt", model, optimizer, position)
    export_checkpoint(model, out / "tokenizer.json", out / "model")


def _train_step(
    model: TrainableDecoder,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    stream: NDArray[np.uint16],
    position: _Position,
    progress: float,
) -> dict[str, Any]:
    started = time.monotonic()
    context = step_context(config, progress)
    num_sequences = max(1, config.batch_tokens // context)
    window = window_batch(stream, position.num_tokens, num_sequences, context)
    batch_BT = torch.from_numpy(window)
    targets_N = batch_BT[:, 1:].reshape(-1)
    depth = config.model.num_layers
    exits = step_exits(config, position.step)
    dropped = step_dropped(config, position.step)
    rate = learning_rate(config, position.step, progress)
    for group in optimizer.param_groups:
        group["lr"] = rate
    outputs = model(batch_BT[:, :-1], {depth, *exits}, dropped)
    loss = model.exit_loss(outputs[depth], targets_N, depth)
    early = torch.zeros(())
    for exit_layer, weight in exits.items():
        early = early + weight * model.exit_loss(outputs[exit_layer], targets_N, exit_layer)
    (loss + config.exit_loss_weight * early).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    elapsed = time.monotonic() - started
    position.step += 1
    position.num_tokens += targets_N.numel()
    position.elapsed_s += elapsed
    return {
        "step": position.step,
        "num_tokens": position.num_tokens,
        "elapsed_s": round(position.elapsed_s, 2),
        "loss": round(loss.item(), 4),
        "exit_loss": round(early.item(), 4),
        "exits": sorted(exits),
        "num_dropped": len(dropped),
        "learning_rate": rate,
        "grad_norm": round(norm.item(), 4),
        "tokens_per_s": round(targets_N.numel() / elapsed, 1),
    }


@torch.no_grad()
def validate(model: TrainableDecoder, heldout: NDArray[np.uint16]) -> dict[int, float]:
    """Mean next-token loss, in nats, by exit layer, over the first held-out windows."""
    depth, context = model.config.num_layers, min(256, model.config.max_position_embeddings)
    exits = sorted({max(1, depth * share // 4) for share in (1, 2, 3, 4)})
    num_windows = min(_NUM_VALIDATION_WINDOWS, (len(heldout) - 1) // context)
    if num_windows < 1:
        return {}
    batch_BT = torch.from_numpy(window_batch(heldout, 0, num_windows, context))
    outputs = model(batch_BT[:, :-1], exits)
    targets_N = batch_BT[:, 1:].reshape(-1)
    return {e: round(model.exit_loss(outputs[e], targets_N, e).item(), 4) for e in exits}


def _save(
    path: Path, model: TrainableDecoder, optimizer: torch.optim.Optimizer, position: _Position
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": position.step,
        "num_tokens": position.num_tokens,
        "elapsed_s": position.elapsed_s,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(path: Path, model: TrainableDecoder, optimizer: torch.optim.Optimizer) -> _Position:
    if not path.exists():
        return _Position()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    logger.info("resuming at step %d", state["step"])
    return _Position(state["step"], state["num_tokens"], state["elapsed_s"])


def export_checkpoint(model: TrainableDecoder, tokenizer_file: Path, out: Path) -> None:
    """Write a Hugging Face directory: latent float32 weights, config.json and tokenizer.json."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        published_name(name): tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(model.config.to_dict(), indent=2)
    (out / "config.json").write_text(config + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.save(str(out / "tokenizer.json"))

"""What a run needs to go on after an interruption: its state file, and a log that fits it."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import ConfigError
from engine.training.modules import TrainableDecoder
from engine.training.optimizers import Optimizers
from engine.training.recipe import TrainingConfig

logger = logging.getLogger(__name__)

_MAY_CHANGE = ("max_steps", "max_tokens", "max_minutes", "decay_share", "compile")
"""What a resumed run may do otherwise: it may become longer or shorter, and be compiled."""


@dataclass(slots=True)
class Position:
    """Where a run stands."""

    step: int = 0
    num_tokens: int = 0
    elapsed_s: float = 0.0
    """Spent in training steps, over all resumptions."""

    def progress(self, config: TrainingConfig) -> float:
        """0 at the start of the run, 1 or more at its end."""
        if config.max_steps is not None:
            return self.step / config.max_steps
        if config.max_tokens is not None:
            return self.num_tokens / config.max_tokens
        assert config.max_minutes is not None
        return self.elapsed_s / (60.0 * config.max_minutes)


def save_state(
    path: Path,
    model: TrainableDecoder,
    optimizers: Optimizers,
    position: Position,
    config: TrainingConfig,
) -> None:
    """Write the state file, all of it or, when interrupted, nothing.

    There is no generator state to keep: what is random in a step follows from (seed, step).
    """
    state = {
        "model": model.state_dict(),
        "optimizers": optimizers.state_dict(),
        "recipe": _recipe(config),
        **asdict(position),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(
    path: Path, model: TrainableDecoder, optimizers: Optimizers, config: TrainingConfig
) -> Position:
    """Put a saved state into model and optimiser; the start of a run when there is no file.

    Raises `ConfigError` when the run was begun with another model or recipe.
    """
    if not path.exists():
        return Position()
    state = torch.load(path, weights_only=True)
    _compare_recipes(path, state.get("recipe", {}), _recipe(config))
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    logger.info("resuming at step %d", state["step"])
    return Position(state["step"], state["num_tokens"], state["elapsed_s"])


def trim_log(path: Path, num_steps: int) -> None:
    """Drop the lines of steps after `num_steps`, and half a line at the end.

    Steps since the last save are trained again after an interruption: the log has each once.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    complete = (line for line in lines if line.endswith("\n"))
    kept = [line for line in complete if json.loads(line)["step"] <= num_steps]
    if len(kept) < len(lines):
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, path)


def _recipe(config: TrainingConfig) -> dict[str, Any]:
    """Name → value of everything that must stay the same; the model's fields as `model.…`."""
    recipe = asdict(config)
    model = recipe.pop("model")
    recipe = {name: value for name, value in recipe.items() if name not in _MAY_CHANGE}
    return recipe | {f"model.{name}": value for name, value in model.items()}


def _compare_recipes(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = [name for name in wanted if name not in saved or saved[name] != wanted[name]]
    if changed:
        listed = ", ".join(
            f"{name} was {saved.get(name, 'not recorded')}, is {wanted[name]}" for name in changed
        )
        raise ConfigError(f"{path} belongs to another run and cannot be resumed: {listed}")

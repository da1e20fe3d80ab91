"""The training recipe as plain, tested formulas (source: the BitSkip model card; LayerSkip).

Layers are counted from 0 here, exits from 1: exit e reads the residual after layer e − 1.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Literal

from engine.config import ModelConfig
from engine.errors import ConfigError

_POSITIVE = (
    "batch_tokens",
    "short_context",
    "learning_rate",
    "clip_norm",
    "max_steps",
    "max_minutes",
)
_NOT_NEGATIVE = ("warmup_steps", "weight_decay", "exit_loss_weight", "layer_dropout_sum")
_SHARES = ("short_fraction", "final_learning_rate_share")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that determines a training run, besides the data.

    Raises `ConfigError`, naming the field, for values that cannot work.
    """

    model: ModelConfig
    batch_tokens: int = 1024
    """Tokens per optimiser step; the number of sequences follows from the context."""
    short_context: int = 256
    """Sequence length of the first part of the run; the rest uses the model's full context."""
    short_fraction: float = 0.8
    """Share of the run that uses `short_context`."""
    learning_rate: float = 1.5e-3
    final_learning_rate_share: float = 0.05
    warmup_steps: int = 200
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    exit_loss_weight: float = 0.3
    exit_schedule: Literal["all", "rotating"] = "rotating"
    trained_exits: tuple[int, ...] = ()
    """Exits that get a loss; empty: all but the full depth, which the main loss trains."""
    layer_dropout_sum: float = 1.0
    """Expected number of layers dropped per step."""
    seed: int = 0
    max_steps: int | None = None
    max_minutes: float | None = None
    """The run's length: by steps, or by minutes (the learning rate follows).

    Minutes are those spent in training steps: time between an interruption and the resumption,
    validating and saving do not count.
    """
    compile: bool = False
    exits: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.max_minutes is None):
            raise ConfigError("give either max_steps or max_minutes")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1")
        if self.exit_schedule not in ("all", "rotating"):
            raise ConfigError("exit_schedule must be all or rotating")
        self._check_against_model()
        exits = set(self.trained_exits) or set(range(1, self.model.num_layers))
        object.__setattr__(self, "exits", tuple(sorted(exits)))

    def _check_against_model(self) -> None:
        depth, context = self.model.num_layers, self.model.max_position_embeddings
        if self.model.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings is not supported in training")
        if depth < 2:
            raise ConfigError("a model of one layer has no exit to train")
        if not all(1 <= exit_layer <= depth for exit_layer in self.trained_exits):
            raise ConfigError(f"trained_exits must lie in 1..{depth}")
        if self.batch_tokens < context:
            raise ConfigError(f"batch_tokens must be at least the context of {context}")
        rates = layer_dropout(depth, self.layer_dropout_sum)
        # A layer that is dropped at every step would never be trained.
        if max(rates) >= 1.0 or not math.isclose(sum(rates), self.layer_dropout_sum):
            raise ConfigError(
                f"layer_dropout_sum {self.layer_dropout_sum} is too much for {depth} layers"
            )


def layer_dropout(num_layers: int, total: float) -> tuple[float, ...]:
    """Drop probability of each layer: quadratic in depth, summing to `total`, the last one 0.

    The card gives p_l = 0.5·(l/L)², normalised so that the probabilities sum to 1. In a shallow
    model a probability may reach its limit of 1, and the sum then falls short of `total`.
    """
    weights = [(layer / num_layers) ** 2 for layer in range(num_layers - 1)]
    scale = total / sum(weights) if sum(weights) else 0.0
    return (*(min(1.0, scale * weight) for weight in weights), 0.0)


def exit_weights(exits: tuple[int, ...]) -> dict[int, float]:
    """Weight of each exit in the early-exit loss: proportional to its depth, summing to 1."""
    total = sum(exits)
    return {exit_layer: exit_layer / total for exit_layer in exits}


def step_exits(config: TrainingConfig, step: int) -> dict[int, float]:
    """Exit → loss weight within the early-exit loss at this step."""
    if config.exit_schedule == "all":
        return exit_weights(config.exits)
    return {config.exits[step % len(config.exits)]: 1.0}


def step_dropped(config: TrainingConfig, step: int) -> frozenset[int]:
    """Layers dropped at this step: a function of (seed, step) alone, so that runs resume."""
    rng = random.Random(f"{config.seed}/{step}")
    rates = layer_dropout(config.model.num_layers, config.layer_dropout_sum)
    return frozenset(layer for layer, rate in enumerate(rates) if rng.random() < rate)


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Linear warm-up by steps, then a cosine over `progress` (0 at the start, 1 at the end)."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    floor = config.final_learning_rate_share
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * warmup * cosine


def step_context(config: TrainingConfig, progress: float) -> int:
    """Sequence length at this point of the run."""
    full = config.model.max_position_embeddings
    return min(config.short_context, full) if progress < config.short_fraction else full

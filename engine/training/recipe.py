"""The training recipe as plain, tested formulas.

Sources: the BitSkip model card; LayerSkip (Elhoushi et al. 2024, arXiv 2404.16710), its
equations for layer dropout and the early-exit curricula.

Layers are counted from 0 here, exits from 1: exit e reads the residual after layer e − 1.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Literal, get_args

from engine.config import ModelConfig
from engine.errors import ConfigError

ExitSchedule = Literal["all", "rotating", "gradual"]
"""Which exits have a loss at a step: every one; one after the other; or, as LayerSkip's gradual
curriculum, the deepest first and one more after equal parts of the run's first half."""

LayerDropout = Literal["card", "exponential", "none"]
"""How a layer's drop probability rises with depth: quadratically, normalised to a sum (the model
card's), or exponentially up to a maximum (LayerSkip's)."""

RateSchedule = Literal["cosine", "wsd"]
"""The learning rate after warm-up: a cosine over the run, or warm-up–stable–decay: constant, then
falling linearly over the last `decay_share`. A constant part knows nothing of the run's length,
so that a run can be cut short or made longer until it decays."""

OptimizerName = Literal["adamw", "muon"]
Precision = Literal["float32", "bfloat16"]

_POSITIVE = (
    "batch_tokens",
    "short_context",
    "learning_rate",
    "clip_norm",
    "distill_temperature",
    "max_steps",
    "max_tokens",
    "max_minutes",
)
_NOT_NEGATIVE = (
    "warmup_steps",
    "weight_decay",
    "exit_loss_weight",
    "layer_dropout_sum",
    "skip_tokens",
)
_SHARES = ("short_fraction", "final_learning_rate_share", "decay_share", "distill_weight")
_CHOICES = {
    "exit_schedule": ExitSchedule,
    "layer_dropout": LayerDropout,
    "learning_rate_schedule": RateSchedule,
    "optimizer": OptimizerName,
    "precision": Precision,
}
_LENGTHS = ("max_steps", "max_tokens", "max_minutes")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that determines a training run, besides its data and its first weights.

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
    learning_rate_schedule: RateSchedule = "cosine"
    decay_share: float = 0.2
    """Share of the run, at its end, over which a `wsd` learning rate falls."""
    final_learning_rate_share: float = 0.05
    warmup_steps: int = 200
    optimizer: OptimizerName = "adamw"
    """Of the layers' matrices; embedding, head and norms always have AdamW."""
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    exit_loss_weight: float = 0.3
    """Of the early-exit loss beside the last layer's; 0: exits are not trained."""
    exit_schedule: ExitSchedule = "rotating"
    trained_exits: tuple[int, ...] = ()
    """Exits that get a loss; empty: all but the full depth, which the main loss trains."""
    distill_weight: float = 0.0
    """Share of an exit's loss that compares it with the last layer instead of the text."""
    distill_temperature: float = 1.0
    layer_dropout: LayerDropout = "card"
    layer_dropout_sum: float = 1.0
    """Expected number of layers dropped per step, with `card`."""
    layer_dropout_max: float = 0.1
    """Drop probability of the last layer, with `exponential`."""
    layer_dropout_grows: bool = False
    """With `exponential`: probabilities grow over the run, from 0 at its start, exponentially too
    (LayerSkip's choice for training from scratch)."""
    precision: Precision = "float32"
    """Of matrix products' inputs. Weights, sums and everything else are float32."""
    skip_tokens: int = 0
    """Where in the data the run begins: behind what an earlier run on it has read."""
    seed: int = 0
    max_steps: int | None = None
    max_tokens: int | None = None
    max_minutes: float | None = None
    """The run's length: by steps, by tokens, or by minutes (the learning rate follows).

    Minutes are those spent in training steps: time between an interruption and the resumption,
    validating and saving do not count.
    """
    compile: bool = False
    exits: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in _LENGTHS) != 1:
            raise ConfigError("give one of max_steps, max_tokens and max_minutes")
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
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(choices))}")
        if not 0 <= self.layer_dropout_max < 1:
            raise ConfigError("layer_dropout_max must lie in 0..1, 1 excluded")
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
        if self.layer_dropout == "card":
            rates = quadratic_dropout(depth, self.layer_dropout_sum)
            # A layer that is dropped at every step would never be trained.
            if max(rates) >= 1.0 or not math.isclose(sum(rates), self.layer_dropout_sum):
                raise ConfigError(
                    f"layer_dropout_sum {self.layer_dropout_sum} is too much for {depth} layers"
                )


def quadratic_dropout(num_layers: int, total: float) -> tuple[float, ...]:
    """Drop probability of each layer: quadratic in depth, summing to `total`, the last one 0.

    The card gives p_l = 0.5·(l/L)², normalised so that the probabilities sum to 1. In a shallow
    model a probability may reach its limit of 1, and the sum then falls short of `total`.
    """
    weights = [(layer / num_layers) ** 2 for layer in range(num_layers - 1)]
    scale = total / sum(weights) if sum(weights) else 0.0
    return (*(min(1.0, scale * weight) for weight in weights), 0.0)


def exponential_dropout(num_layers: int, maximum: float, growth: float = 1.0) -> tuple[float, ...]:
    """LayerSkip's D(l)·S(t)·p_max with D(l) = e^(l·ln 2/(L − 1)) − 1: 0 at the first layer.

    `growth` is S(t), in 0..1.
    """
    return tuple(
        maximum * growth * (2.0 ** (layer / max(1, num_layers - 1)) - 1)
        for layer in range(num_layers)
    )


def dropout_rates(config: TrainingConfig, progress: float) -> tuple[float, ...]:
    """Drop probability of each layer at this point of the run."""
    depth = config.model.num_layers
    match config.layer_dropout:
        case "none":
            return (0.0,) * depth
        case "card":
            return quadratic_dropout(depth, config.layer_dropout_sum)
        case "exponential":
            growth = 2.0 ** min(1.0, progress) - 1 if config.layer_dropout_grows else 1.0
            return exponential_dropout(depth, config.layer_dropout_max, growth)


def exit_weights(exits: tuple[int, ...]) -> dict[int, float]:
    """Weight of each exit in the early-exit loss: proportional to its depth, summing to 1."""
    total = sum(exits)
    return {exit_layer: exit_layer / total for exit_layer in exits}


def step_exits(config: TrainingConfig, step: int, progress: float) -> dict[int, float]:
    """Exit → loss weight within the early-exit loss at this step; empty where that is off."""
    if config.exit_loss_weight == 0:
        return {}
    exits = config.exits
    match config.exit_schedule:
        case "rotating":
            return {exits[step % len(exits)]: 1.0}
        case "gradual":
            num_enabled = min(len(exits), 1 + int(2 * len(exits) * progress))
            return exit_weights(exits[-num_enabled:])
        case "all":
            return exit_weights(exits)


def step_dropped(config: TrainingConfig, step: int, progress: float) -> frozenset[int]:
    """Layers dropped at this step: a function of its arguments alone, so that runs resume."""
    rng = random.Random(f"{config.seed}/{step}")
    rates = dropout_rates(config, progress)
    return frozenset(layer for layer, rate in enumerate(rates) if rng.random() < rate)


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Linear warm-up by steps, then as `learning_rate_schedule` over `progress` in 0..1."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    left = max(0.0, 1.0 - progress)
    if config.learning_rate_schedule == "cosine":
        height = 0.5 * (1 - math.cos(math.pi * left))
    else:
        height = min(1.0, left / config.decay_share) if config.decay_share else 1.0
    floor = config.final_learning_rate_share
    return config.learning_rate * warmup * (floor + (1 - floor) * height)


def step_context(config: TrainingConfig, progress: float) -> int:
    """Sequence length at this point of the run."""
    full = config.model.max_position_embeddings
    return min(config.short_context, full) if progress < config.short_fraction else full

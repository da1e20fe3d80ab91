"""The model that `bitskip train` trains: from options, or from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from engine.config import ModelConfig
from engine.errors import ConfigError

if TYPE_CHECKING:
    from engine.checkpoint.loader import Checkpoint

Variant = Literal["v1", "v2", "v3", "dense"]
# As in engine.training.recipe, which is not imported before it is needed.
ExitSchedule = Literal["all", "rotating", "gradual"]
LayerDropout = Literal["card", "exponential", "none"]
RateSchedule = Literal["cosine", "wsd"]
OptimizerName = Literal["adamw", "muon"]
Precision = Literal["float32", "bfloat16"]

START_PANEL = "Model, unless it goes --from a checkpoint"

_NUMERICS: dict[Variant, dict[str, Any]] = {
    "v1": {"weights": "latent"},
    "v2": {"weights": "latent", "activation_bits": 4, "hadamard": "before"},
    "v3": {"weights": "latent", "hadamard": "before"},
    "dense": {"weights": "dense"},
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What was asked for; None where nothing was."""

    variant: Variant | None = None
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    feed_forward: int | None = None
    vocabulary: int | None = None
    context: int | None = None


def new_model(shape: ModelShape) -> ModelConfig:
    """The model asked for; where nothing was, the demo model's shape."""
    vocab_size = shape.vocabulary or 4096
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden or 256,
        num_layers=shape.layers or 12,
        num_heads=shape.heads or 8,
        num_kv_heads=shape.kv_heads or 2,
        head_dim=shape.head_dim or 32,
        intermediate_size=shape.feed_forward or 512,
        max_position_embeddings=shape.context or 512,
        eos_token_ids=(vocab_size - 1,),
        **_NUMERICS[shape.variant or "v1"],
    )


def started_model(start: Checkpoint, shape: ModelShape) -> ModelConfig:
    """A checkpoint's model; its head is a matrix of its own from here on.

    Raises `ConfigError` when a shape was asked for as well.
    """
    for field in fields(shape):
        if getattr(shape, field.name) is not None:
            option = field.name.replace("_", "-")
            raise ConfigError(f"--{option} is the checkpoint's: it does not go with --from")
    return replace(start.config, tie_word_embeddings=False, draft_exit_layer=None)

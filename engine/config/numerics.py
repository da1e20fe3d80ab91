"""The numerics that a config.json can ask for: quantisation, transforms, rotary positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from engine.config.fields import Fields
from engine.errors import ConfigError

Weights = Literal["latent", "ternary", "dense"]
"""What the linears' tensors hold.

`latent`: floats to be ternarised; `ternary`: only −s, 0 and +s; `dense`: floats to be used as
they are, on activations that are not quantised.
"""

Hadamard = Literal["none", "before", "after"]
"""Where a linear's input is Hadamard-transformed: not at all, before or after quantisation.

`before` is the model card's order: transform, quantise, multiply, transform back.
"""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Rotary positions stretched as in Llama 3 ("llama3" in transformers).

    Frequencies whose wavelength exceeds original_max_position_embeddings / low_freq_factor are
    divided by `factor`, those under original_max_position_embeddings / high_freq_factor are
    kept, and those between are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor {self.low_freq_factor} must be less than high_freq_factor "
                f"{self.high_freq_factor}"
            )


@dataclass(frozen=True, slots=True)
class Numerics:
    """What a model_type stands for where config.json is silent."""

    weights: Literal["latent", "dense"]
    activation_bits: int = 8
    hadamard: Hadamard = "none"
    context: int = 512


PACKED_MODEL_TYPE = "bitskip_packed"
"""Of packed directories: every variant, its numerics spelt out."""

_FAMILY = {
    "bitskip_v1": Numerics("latent"),
    "bitskip_v2": Numerics("latent", activation_bits=4, hadamard="before"),
    "bitskip_v3": Numerics("latent", hadamard="before"),
    PACKED_MODEL_TYPE: Numerics("latent"),
    "llama": Numerics("dense", context=2048),
}
"""By the start of model_type: `llama` is what LayerSkip's checkpoints and the twin are called."""


def numerics_of(model_type: str) -> Numerics:
    """The numerics that a model_type stands for."""
    for start, numerics in _FAMILY.items():
        if model_type.startswith(start):
            return numerics
    raise ConfigError(
        f"model_type {model_type!r} is not supported: it must begin with one of "
        f"{', '.join(_FAMILY)}"
    )


def read_weights(fields: Fields, numerics: Numerics) -> Weights:
    """What the linears' tensors hold."""
    weights = fields.get("weights", numerics.weights)
    if weights not in get_args(Weights):
        raise ConfigError(f"weights must be one of {', '.join(get_args(Weights))}, not {weights!r}")
    return weights


def read_hadamard(fields: Fields, numerics: Numerics) -> Hadamard:
    """False and true stand for the absence of a transform, and for the model card's order."""
    value = fields.get("hadamard", numerics.hadamard)
    if isinstance(value, bool):
        return "before" if value else "none"
    if value not in get_args(Hadamard):
        raise ConfigError(
            f"hadamard must be true, false, or one of {', '.join(get_args(Hadamard))}, "
            f"not {value!r}"
        )
    return value


def read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or the two older fields.

    Where several of these places speak, they must say the same.
    """
    sections = fields.section("rope_parameters"), fields.section("rope_scaling")
    thetas = {
        place.number("rope_theta") for place in (fields, *sections) if place.has("rope_theta")
    }
    if len(thetas) > 1:
        raise ConfigError(f"rope_theta has several values: {', '.join(map(str, sorted(thetas)))}")
    scalings = [
        _read_scaling(section)
        for section in sections
        if any(map(section.has, ("rope_type", "type", "factor")))
    ]
    if len(set(scalings)) > 1:
        raise ConfigError("rope_parameters and rope_scaling scale differently")
    for section in sections:
        _refuse_partial_rotation(section)
    return thetas.pop() if thetas else 10_000.0, scalings[0] if scalings else None


def _read_scaling(section: Fields) -> RopeScaling | None:
    kind = section.get("rope_type", section.get("type", "default"))
    if kind == "llama3":
        return RopeScaling(
            factor=section.number("factor"),
            low_freq_factor=section.number("low_freq_factor"),
            high_freq_factor=section.number("high_freq_factor"),
            original_max_position_embeddings=section.size("original_max_position_embeddings"),
        )
    if kind != "default" or section.says("factor"):
        raise ConfigError(
            f"rope_scaling of type {kind!r} is not supported: only 'default' and 'llama3' are"
        )
    return None


def refuse_other_llamas(fields: Fields) -> None:
    """Raise for what Llama's configuration can ask for and no checkpoint of the family uses."""
    for name in ("attention_bias", "mlp_bias"):
        if fields.flag(name, False):
            raise ConfigError(f"{name} true is not supported: linears have no biases")
    activation = fields.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"hidden_act {activation!r} is not supported: only 'silu' is")
    _refuse_partial_rotation(fields)


def _refuse_partial_rotation(fields: Fields) -> None:
    """The factor stands by itself, or in `rope_parameters` (transformers 5)."""
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("partial_rotary_factor is not supported: whole heads are rotated")

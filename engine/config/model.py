"""What a model is: its shape and its numerics, as its config.json tells.

The variants of the family differ in these fields alone; no code asks for a variant by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from engine.config.fields import Fields, is_integer, is_positive_number
from engine.config.numerics import (
    Hadamard,
    RopeScaling,
    Weights,
    numerics_of,
    read_hadamard,
    read_rope,
    read_weights,
    refuse_other_llamas,
)
from engine.errors import CheckpointError, ConfigError

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
)

_MAX_LAYERS = 1_000
_MAX_POSITIONS = 1 << 24
"""Far more than any model has; what is larger is a slip, and would take all memory."""

_MAX_TRANSFORMED_WIDTH = 1 << 16
"""|Σ (Hq)·t| ≤ 127·n·√n, which 32 bits hold up to this n."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and numerics of one early-exit Llama-shaped decoder."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int = 512
    """The trained context, in tokens; longer requests are refused."""
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    exit_norm: bool = True
    """Whether the final norm is applied before the head at an early exit too."""
    tie_word_embeddings: bool = False
    weights: Weights = "latent"
    activation_bits: int = 8
    """Of ternary linears' inputs: 8 or 4. Of no meaning where weights are dense."""
    hadamard: Hadamard = "none"
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    draft_exit_layer: int | None = None
    """The draft depth that was found to be best for this checkpoint, if anybody has looked."""

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not is_integer(value) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, not {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_key_value_heads {self.num_kv_heads} must divide "
                f"num_attention_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, not {self.head_dim}")
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(self, name)
            if not is_positive_number(value):
                raise ConfigError(f"{name} must be a positive number, not {value!r}")
        self._check_linears()
        self._check_special_tokens()

    def _check_linears(self) -> None:
        if self.activation_bits not in (4, 8):
            raise ConfigError(f"activation_bits must be 4 or 8, not {self.activation_bits!r}")
        if self.hadamard not in get_args(Hadamard):
            raise ConfigError(
                f"hadamard must be one of {', '.join(get_args(Hadamard))}, not {self.hadamard!r}"
            )
        if self.is_dense:
            if self.hadamard != "none":
                raise ConfigError(
                    "hadamard is for ternary weights: dense ones are used as they are"
                )
            return
        widths = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads x head_dim": self.q_size,
            "num_key_value_heads x head_dim": self.kv_size,
        }
        for name, width in widths.items():
            if 127 * width >= 1 << 24:
                raise ConfigError(f"a width of {width} is too large for exact float32 sums")
            if self.hadamard != "none" and width & (width - 1):
                raise ConfigError(
                    f"a Hadamard transform needs widths that are powers of two: {name} is {width}"
                )
            if self.hadamard == "after" and width > _MAX_TRANSFORMED_WIDTH:
                raise ConfigError(
                    f"a width of {width} is too large for 32-bit sums of transformed integers"
                )

    def _check_special_tokens(self) -> None:
        for token_id in self.eos_token_ids:
            if not is_integer(token_id):
                raise ConfigError(f"eos_token_id must be an integer, not {token_id!r}")
            if not 0 <= token_id < self.vocab_size:
                raise ConfigError(f"eos_token_id {token_id} lies outside the vocabulary")
        if self.bos_token_id is not None and not is_integer(self.bos_token_id):
            raise ConfigError(f"bos_token_id must be an integer, not {self.bos_token_id!r}")

    @property
    def q_size(self) -> int:
        """Output width of q_proj."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Output width of k_proj and of v_proj."""
        return self.num_kv_heads * self.head_dim

    @property
    def is_dense(self) -> bool:
        """Whether the linears are ordinary float matrices."""
        return self.weights == "dense"

    @property
    def activation_max(self) -> int:
        """Largest magnitude of a quantised activation: 127 of 8 bits, 7 of 4."""
        return (1 << (self.activation_bits - 1)) - 1

    @property
    def variant(self) -> str:
        """The family's name for these numerics, for people: v1, v2, v3 or dense."""
        if self.is_dense:
            return "dense"
        if self.hadamard == "none":
            return "v1" if self.activation_bits == 8 else "v1-4bit"
        name = "v3" if self.activation_bits == 8 else "v2"
        return name if self.hadamard == "before" else f"{name}-quantise-first"

    @property
    def suggested_exits(self) -> tuple[int, ...]:
        """Depths worth trying: a quarter, a half, three quarters and all of the layers."""
        quarters = (self.num_layers * quarter // 4 for quarter in (1, 2, 3, 4))
        return tuple(sorted({max(1, exit_layer) for exit_layer in quarters}))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face `config.json`; silent fields get the family's defaults.

        Raises `ConfigError` for a missing or impossible field and for what no backend can run
        (another model_type, biases, other activation functions or rotary positions), so that
        nothing is served wrongly.
        """
        fields = Fields(raw)
        numerics = numerics_of(str(raw.get("model_type", "bitskip_v1_earlyexit")))
        refuse_other_llamas(fields)
        hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        num_layers = fields.size("num_hidden_layers", most=_MAX_LAYERS)
        eos = raw.get("eos_token_id")
        draft_exit = raw.get("draft_exit_layer")
        if draft_exit is not None and not (
            is_integer(draft_exit) and 1 <= draft_exit <= num_layers
        ):
            raise ConfigError(
                f"draft_exit_layer must be an integer in 1..{num_layers}, not {draft_exit!r}"
            )
        rope_theta, rope_scaling = read_rope(fields)
        return cls(
            vocab_size=fields.size("vocab_size"),
            hidden_size=hidden,
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=fields.size("num_key_value_heads", heads),
            head_dim=fields.size("head_dim", hidden // heads),
            intermediate_size=fields.size("intermediate_size"),
            max_position_embeddings=fields.size(
                "max_position_embeddings", numerics.context, _MAX_POSITIONS
            ),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            exit_norm=fields.flag("exit_norm", True),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            weights=read_weights(fields, numerics),
            activation_bits=fields.size("activation_bits", numerics.activation_bits),
            hadamard=read_hadamard(fields, numerics),
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            bos_token_id=raw.get("bos_token_id"),
            draft_exit_layer=draft_exit,
        )

    @classmethod
    def from_directory(cls, path: Path) -> ModelConfig:
        """Read `path/config.json`. Raises `CheckpointError` when it is absent or broken."""
        if not path.exists():
            raise CheckpointError(f"{path}: no such directory")
        file = path / "config.json"
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: not valid JSON ({error})") from error
        if not isinstance(raw, dict):
            raise CheckpointError(f"{file}: not a JSON object")
        try:
            return cls.from_dict(raw)
        except ConfigError as error:
            raise CheckpointError(f"{file}: {error}") from error

    @property
    def model_type(self) -> str:
        """The published model_type of these numerics; what they lack, other fields tell."""
        if self.is_dense:
            return "llama"
        return f"bitskip_{self.variant[:2]}_earlyexit"

    def linear_fields(self) -> dict[str, Any]:
        """The fields of `config.json` that tell how ternary linears compute; none if dense."""
        if self.is_dense:
            return {}
        return {
            "activation_bits": self.activation_bits,
            "hadamard": False if self.hadamard == "none" else self.hadamard,
        }

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of this model; `from_dict` reads it back unchanged."""
        eos = list(self.eos_token_ids)
        raw: dict[str, Any] = {
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "exit_norm": self.exit_norm,
            "tie_word_embeddings": self.tie_word_embeddings,
            "weights": self.weights,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "bos_token_id": self.bos_token_id,
        }
        raw |= self.linear_fields()
        if self.rope_scaling is not None:
            raw["rope_scaling"] = {"rope_type": "llama3"} | {
                name: getattr(self.rope_scaling, name) for name in RopeScaling.__slots__
            }
        if self.draft_exit_layer is not None:
            raw["draft_exit_layer"] = self.draft_exit_layer
        return raw

"""Frozen configuration: what a model is, and how an engine runs it.

Both classes are resolved once, validated on construction, and never changed afterwards;
`dataclasses.replace` makes a variation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from engine.errors import CheckpointError, ConfigError

MAX_SPECULATIONS = 16
"""The longest draft that a request may ask for (the exit-state scratch is sized by it)."""


def _is_integer(value: object) -> TypeGuard[int]:
    """JSON's true and false are integers to Python, but not to us."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive_number(value: object) -> TypeGuard[float]:
    return (isinstance(value, float) or _is_integer(value)) and 0.0 < value <= sys.float_info.max


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and numerics of one early-exit ternary Llama-shaped decoder."""

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
    rms_norm_eps: float = 1e-6
    exit_norm: bool = True
    """Whether the final norm is applied before the head at an early exit too."""
    tie_word_embeddings: bool = False
    activation_bits: int = 8
    weights: Literal["latent", "ternary"] = "latent"
    """`latent`: float weights to be ternarised; `ternary`: tensors hold only −s, 0 and +s."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    draft_exit_layer: int | None = None
    """The draft depth that was found to be best for this checkpoint, if anybody has looked."""
    variant: str = "v1"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not _is_integer(value) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, not {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_key_value_heads {self.num_kv_heads} must divide "
                f"num_attention_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, not {self.head_dim}")
        if self.activation_bits != 8:
            raise ConfigError(
                f"activation_bits {self.activation_bits} is not supported: only the 8-bit v1 "
                "variant can be run"
            )
        draft = self.draft_exit_layer
        if draft is not None and not (_is_integer(draft) and 1 <= draft <= self.num_layers):
            raise ConfigError(f"draft_exit_layer must lie in 1..{self.num_layers}, not {draft!r}")
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(self, name)
            if not _is_positive_number(value):
                raise ConfigError(f"{name} must be a positive number, not {value!r}")
        for token_id in self.eos_token_ids:
            if not _is_integer(token_id):
                raise ConfigError(f"eos_token_id must be an integer, not {token_id!r}")
            if not 0 <= token_id < self.vocab_size:
                raise ConfigError(f"eos_token_id {token_id} lies outside the vocabulary")
        if self.bos_token_id is not None and not _is_integer(self.bos_token_id):
            raise ConfigError(f"bos_token_id must be an integer, not {self.bos_token_id!r}")
        widest = max(self.hidden_size, self.intermediate_size, self.num_heads * self.head_dim)
        if 127 * widest >= 1 << 24:
            raise ConfigError(f"a width of {widest} is too large for exact float32 sums")

    @property
    def q_size(self) -> int:
        """Output width of q_proj."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Output width of k_proj and of v_proj."""
        return self.num_kv_heads * self.head_dim

    @property
    def suggested_exits(self) -> tuple[int, ...]:
        """Depths worth trying: a quarter, a half, three quarters and all of the layers."""
        quarters = (self.num_layers * quarter // 4 for quarter in (1, 2, 3, 4))
        return tuple(sorted({max(1, exit_layer) for exit_layer in quarters}))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face `config.json`; silent fields get the family's defaults.

        Raises `ConfigError` for a missing or impossible field and for variants that this
        version cannot run (Hadamard, 4-bit, rope scaling), so that none is served wrongly.
        """

        def value_of(name: str, default: Any = None) -> Any:
            value = raw.get(name)
            if value is None and default is None:
                raise ConfigError(f"config.json lacks {name}")
            return default if value is None else value

        def size(name: str, default: int | None = None) -> int:
            value = value_of(name, default)
            if not _is_integer(value) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, not {value!r}")
            return value

        def number(name: str, default: float) -> float:
            value = value_of(name, default)
            if not _is_positive_number(value):
                raise ConfigError(f"{name} must be a positive number, not {value!r}")
            return float(value)

        def flag(name: str, default: bool) -> bool:
            value = value_of(name, default)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} must be true or false, not {value!r}")
            return value

        model_type = str(raw.get("model_type", "bitskip_v1_earlyexit"))
        if not model_type.startswith("bitskip_v1"):
            raise ConfigError(
                f"model_type {model_type!r} is not supported: only bitskip_v1 models can be run"
            )
        if raw.get("hadamard"):
            raise ConfigError("hadamard models are not supported: only the v1 variant can be run")
        if raw.get("rope_scaling"):
            raise ConfigError("rope_scaling is not supported")
        rope = value_of("rope_parameters", {})
        if not isinstance(rope, Mapping):
            raise ConfigError(f"rope_parameters must be an object, not {rope!r}")
        hidden, heads = size("hidden_size"), size("num_attention_heads")
        eos = raw.get("eos_token_id")
        eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
        weights = raw.get("weights", "latent")
        if weights not in ("latent", "ternary"):
            raise ConfigError(f"weights must be 'latent' or 'ternary', not {weights!r}")
        return cls(
            vocab_size=size("vocab_size"),
            hidden_size=hidden,
            num_layers=size("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", hidden // heads),
            intermediate_size=size("intermediate_size"),
            max_position_embeddings=size("max_position_embeddings", 512),
            rope_theta=number("rope_theta", rope.get("rope_theta") or 10_000.0),
            rms_norm_eps=number("rms_norm_eps", 1e-6),
            exit_norm=flag("exit_norm", True),
            tie_word_embeddings=flag("tie_word_embeddings", False),
            activation_bits=size("activation_bits", 8),
            weights=weights,
            eos_token_ids=eos_ids,
            bos_token_id=raw.get("bos_token_id"),
            draft_exit_layer=raw.get("draft_exit_layer"),
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
        except ValueError as error:
            raise CheckpointError(f"{file}: not valid JSON ({error})") from error
        if not isinstance(raw, dict):
            raise CheckpointError(f"{file}: not a JSON object")
        try:
            return cls.from_dict(raw)
        except ConfigError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of this model; `from_dict` reads it back unchanged."""
        eos = list(self.eos_token_ids)
        return {
            "model_type": "bitskip_v1_earlyexit",
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
            "activation_bits": self.activation_bits,
            "hadamard": False,
            "weights": self.weights,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "bos_token_id": self.bos_token_id,
            **({"draft_exit_layer": self.draft_exit_layer} if self.draft_exit_layer else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine runs a model. None means: decided from the model by `resolve`."""

    block_size: int = 16
    """Positions per K/V block."""
    head_dtype: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """What the LM head is held in; auto: what the backend is best at."""
    kv_dtype: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    """What K/V is rounded to, once, on writing."""
    kv_cache_tokens: int | None = None
    """Positions that the K/V pool holds; None: four full contexts, at least 16,384."""
    max_num_seqs: int = 256
    """Choices that may run at once."""
    max_model_len: int | None = None
    """Longest prompt plus completion; None: the trained context, which it may not exceed."""
    max_batched_tokens: int = 512
    """Prompt rows in one sweep, at most; decoding choices' rows come on top."""
    prefill_budget_s: float = 0.1
    """Predicted time that prompt rows may add to a sweep while anyone decodes."""
    enable_prefix_caching: bool = True
    speculative: bool = True
    """Whether requests that do not say are drafted for."""
    draft_exit_layer: int | None = None
    """Draft depth for requests that do not say; None: the checkpoint's, or else a quarter."""
    num_speculations: int | None = None
    """Drafts per round for requests that do not say; None: what pays, decided round by round."""
    draft_vocab_size: int = 8192
    """Ids that the draft head scores, besides EOS and specials."""
    ngram_min: int = 2
    ngram_max: int = 4
    """Lengths of the text's own endings that n-gram drafting looks for."""

    def resolve(self, model: ModelConfig) -> EngineConfig:
        """A copy with every None decided for this model; raises `ConfigError` if impossible."""
        for name in ("block_size", "max_num_seqs", "max_batched_tokens", "draft_vocab_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= (self.num_speculations or 0) <= MAX_SPECULATIONS:
            raise ConfigError(f"num_speculations must lie in 0..{MAX_SPECULATIONS}")
        if not 1 <= self.ngram_min <= self.ngram_max:
            raise ConfigError("ngram_min must be at least 1 and at most ngram_max")
        if not 0.0 <= self.prefill_budget_s <= sys.float_info.max:
            raise ConfigError("prefill_budget_s must be a number of seconds, at least 0")
        context = model.max_position_embeddings
        max_model_len = context if self.max_model_len is None else self.max_model_len
        if not 1 <= max_model_len <= context:
            raise ConfigError(f"max_model_len must lie in 1..{context}, the trained context")
        tokens = self.kv_cache_tokens
        if tokens is None:
            tokens = max(4 * max_model_len, 16_384)
        if tokens < max_model_len:
            raise ConfigError(
                f"kv_cache_tokens {tokens} cannot hold one request of max_model_len {max_model_len}"
            )
        draft = self.draft_exit_layer
        if draft is None:
            draft = model.draft_exit_layer
        if draft is None:
            draft = max(1, model.num_layers // 4)
        if not 1 <= draft <= model.num_layers:
            raise ConfigError(f"draft_exit_layer must lie in 1..{model.num_layers}")
        return replace(
            self, max_model_len=max_model_len, kv_cache_tokens=tokens, draft_exit_layer=draft
        )

    @property
    def num_blocks(self) -> int:
        """K/V blocks in the pool (of a resolved configuration)."""
        assert self.kv_cache_tokens is not None, "resolve() first"
        return -(-self.kv_cache_tokens // self.block_size)

    @property
    def num_exit_states(self) -> int:
        """Slots of saved exit states: one draft of the greatest length per running choice."""
        return self.max_num_seqs * MAX_SPECULATIONS

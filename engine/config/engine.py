"""How an engine runs a model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal

from engine.config.model import ModelConfig
from engine.errors import ConfigError

MAX_SPECULATIONS = 16
"""The longest draft that a request may ask for (the exit-state scratch is sized by it)."""
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""What a number takes in memory, by what head, dense linears or K/V are held in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine runs a model. None means: decided from the model by `resolve`."""

    block_size: int = 16
    """Positions per K/V block."""
    head_dtype: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """What the LM head is held in; auto: what the backend is best at."""
    dense_dtype: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """What the linears of a dense model are held in; ternary models have none."""
    kv_dtype: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    """What K/V is rounded to, once, on writing."""
    kv_cache_tokens: int | None = None
    """Positions that the K/V pool holds; None: four full contexts, but within 16,384 and 65,536,
    and always one."""
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
        if self.dense_dtype != "auto" and not model.is_dense:
            raise ConfigError(
                f"dense_dtype {self.dense_dtype} is for models with dense weights: this one's are "
                "ternary, always at two bits"
            )
        context = model.max_position_embeddings
        max_model_len = context if self.max_model_len is None else self.max_model_len
        if not 1 <= max_model_len <= context:
            raise ConfigError(f"max_model_len must lie in 1..{context}, the trained context")
        tokens = self.kv_cache_tokens
        if tokens is None:
            tokens = max(max_model_len, min(max(4 * max_model_len, 16_384), 65_536))
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

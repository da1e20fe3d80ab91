"""Small random models, held in memory, with a dial for how well their exits agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.names import (
    EMBEDDING,
    FINAL_NORM,
    LINEARS,
    LM_HEAD,
    linear_name,
    linear_shape,
    norm_names,
)
from engine.config import ModelConfig


def tiny_config(**overrides: Any) -> ModelConfig:
    """A model of 6 layers that runs in milliseconds; `overrides` are fields of `ModelConfig`."""
    fields: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "num_layers": 6,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "eos_token_ids": (0,),
    }
    return ModelConfig(**{**fields, **overrides})


@dataclass(frozen=True, slots=True)
class MemoryTernary:
    """One ternary linear: `scale` × `trits`."""

    trits: NDArray[np.int8]
    scale: np.float32


class MemoryCheckpoint:
    """Random weights from `seed`, ternary or dense, behind the interface of a loaded checkpoint.

    With `agreement_after=k`, what layers ≥ k add to the residual is multiplied by `damping`, so
    that exits ≥ k mostly predict what the full depth does: the smaller, the more often.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 0,
        agreement_after: int | None = None,
        damping: float = 0.1,
    ) -> None:
        self.config = config
        rng = np.random.default_rng(seed)
        hidden, vocab = config.hidden_size, config.vocab_size
        self._linears: dict[tuple[int, str], MemoryTernary] = {}
        self._tensors: dict[str, NDArray[np.floating]] = {}
        for layer in range(config.num_layers):
            damped = agreement_after is not None and layer >= agreement_after
            for linear in LINEARS:
                shape = linear_shape(config, linear)
                shrink = damping if damped and linear in ("o_proj", "down_proj") else 1.0
                if config.is_dense:
                    gain = shrink / math.sqrt(shape[1])
                    values = (rng.standard_normal(shape) * gain).astype(np.float32)
                    self._tensors[linear_name(layer, linear)] = values
                    continue
                trits = rng.choice(np.array([-1, 0, 1], np.int8), shape, p=(0.3, 0.4, 0.3))
                # About unit gain: 0.6 of the inputs take part.
                scale = rng.uniform(0.8, 1.2) / math.sqrt(0.6 * shape[1]) * shrink
                self._linears[layer, linear] = MemoryTernary(trits, np.float32(scale))
            for name in norm_names(layer):
                self._tensors[name] = rng.uniform(0.7, 1.3, hidden).astype(np.float32)
        self._tensors[FINAL_NORM] = rng.uniform(0.7, 1.3, hidden).astype(np.float32)
        self._tensors[EMBEDDING] = rng.standard_normal((vocab, hidden)).astype(np.float32)
        if not config.tie_word_embeddings:
            head = rng.standard_normal((vocab, hidden)) * (2.0 / math.sqrt(hidden))
            self._tensors[LM_HEAD] = head.astype(np.float32)

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        linears: Mapping[tuple[int, str], MemoryTernary],
        tensors: Mapping[str, NDArray[np.floating]],
    ) -> Self:
        """A checkpoint of given weights: (layer, name) → linear, canonical name → tensor."""
        checkpoint = cls.__new__(cls)
        checkpoint.config = config
        checkpoint._linears, checkpoint._tensors = dict(linears), dict(tensors)
        return checkpoint

    def truncated(self, num_layers: int) -> Self:
        """The model of the first `num_layers` layers, with the same embedding, norm and head."""
        config = replace(self.config, num_layers=num_layers)
        return type(self).of(config, self._linears, self._tensors)

    def linear(self, layer: int, linear: str) -> MemoryTernary:
        """One of a layer's ternary linears, by its name in `names.LINEARS`."""
        return self._linears[layer, linear]

    def tensor(self, name: str) -> NDArray[np.floating]:
        """A float tensor by its canonical name; `KeyError` if the model has none."""
        return self._tensors[name]

"""Where a forward pass ends: what a model's layers and its final norm share to know it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from engine.hf.config import BitSkipConfig


class Exit:
    """The exit layer of one model."""

    def __init__(self, config: BitSkipConfig) -> None:
        self._config = config
        self.num_layers = config.num_hidden_layers
        self.layer = self.num_layers

    @property
    def depth(self) -> int:
        """How many layers run.

        transformers' `assistant_early_exit` lowers config.num_hidden_layers while it drafts.
        """
        return min(self.layer, self._config.num_hidden_layers)

    def check_cache(self, cache: Cache) -> None:
        """Raise `ValueError` for K/V of another depth: some layers would lack positions."""
        lengths = [int(cache.get_seq_length(index)) for index in range(len(cache.layers))]
        filled = sum(length > 0 for length in lengths)
        if filled and (filled != self.depth or len(set(lengths[:filled])) > 1):
            raise ValueError(
                f"the cache was filled by {filled} layers and the exit is now {self.depth}: a "
                "cache goes on only with the exit that it began with; start a new one"
            )


class ExitDecoderLayer(LlamaDecoderLayer):
    """Llama's decoder layer; past the exit the residual passes it by, its hooks too."""

    def __init__(self, config: BitSkipConfig, layer_idx: int, exit: Exit) -> None:
        super().__init__(config, layer_idx)
        self._index = layer_idx
        self._exit = exit

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._index >= self._exit.depth:
            return hidden_states
        return super().__call__(hidden_states, *args, **kwargs)


class ExitRMSNorm(LlamaRMSNorm):
    """The final norm, which some checkpoints have at full depth alone (`exit_norm` false)."""

    def __init__(self, config: BitSkipConfig, exit: Exit) -> None:
        super().__init__(config.hidden_size, eps=config.rms_norm_eps)
        self._exit = exit
        self._at_early_exits = config.exit_norm

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self._at_early_exits or self._exit.depth == self._exit.num_layers:
            return super().forward(hidden_states)
        return hidden_states

"""The reference decoder: rows through layers, over a paged K/V cache.

A row's floats are a function of that row and of the cached keys and values at its positions,
bit for bit; `ops` says how.

Shape legend: N rows, P keys of one row, S cache slots, D hidden, H heads, G KV heads, M query
heads per KV head, C head_dim, Q = G·M·C, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.config import ModelConfig
from engine.model.ops import head_logits, rotary_tables, rotate, silu, single_threaded
from engine.model.rotary import rotary_angles
from engine.model.weights import DecoderWeights


@dataclass(frozen=True, slots=True)
class Placement:
    """Where rows stand: their rotary angles, their own cache slots, and those that they read."""

    cos_N1C: Tensor
    sin_N1C: Tensor
    slots_N: Tensor
    key_slots: tuple[Tensor, ...]
    """Row by row, the slots of positions 0..p."""


class Decoder:
    """The model's layers as functions of rows; owns weights, never the cache."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self.device = weights.embedding_VD.device
        self._attention_scale = 1.0 / math.sqrt(config.head_dim)
        self._cos, self._sin = rotary_tables(rotary_angles(config), self.device)

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """N × D residuals at depth 0."""
        return self.weights.embedding_VD[torch.tensor(tokens, device=self.device)]

    def place(self, key_slots: Sequence[NDArray[np.int64]]) -> Placement:
        """Prepare rows for `layer`.

        `key_slots[i]` are the cache slots of row i's positions 0..p, its own last.
        """
        positions = torch.tensor([len(slots) - 1 for slots in key_slots], device=self.device)
        return Placement(
            cos_N1C=self._cos[positions].unsqueeze(1),
            sin_N1C=self._sin[positions].unsqueeze(1),
            slots_N=torch.tensor([int(slots[-1]) for slots in key_slots], device=self.device),
            key_slots=tuple(torch.from_numpy(slots).to(self.device) for slots in key_slots),
        )

    def layer(
        self, index: int, hidden_ND: Tensor, rows: Placement, keys_SGC: Tensor, values_SGC: Tensor
    ) -> Tensor:
        """Residuals after layer `index`; every row's K/V is written before any row attends.

        K/V is rounded to the cache's dtype once, on writing, and read back from there.
        """
        config, layer = self.config, self.weights.layers[index]
        num_rotated = config.num_heads + config.num_kv_heads
        qkv = layer.qkv(layer.attention_norm(hidden_ND))
        heads_NHC = qkv.unflatten(1, (-1, config.head_dim))
        rotated_NHC = rotate(heads_NHC[:, :num_rotated], rows.cos_N1C, rows.sin_N1C)
        keys_NGC, values_NGC = rotated_NHC[:, config.num_heads :], heads_NHC[:, num_rotated:]
        keys_SGC.index_copy_(0, rows.slots_N, keys_NGC.to(keys_SGC.dtype))
        values_SGC.index_copy_(0, rows.slots_N, values_NGC.to(values_SGC.dtype))

        queries_NGMC = rotated_NHC[:, : config.num_heads].unflatten(1, (config.num_kv_heads, -1))
        with single_threaded():
            attended = [
                self._attend(queries_GMC, slots_P, keys_SGC, values_SGC)
                for queries_GMC, slots_P in zip(queries_NGMC.unbind(), rows.key_slots, strict=True)
            ]
        attended_NQ = torch.stack(attended).flatten(1)
        hidden_ND = hidden_ND + layer.output(attended_NQ)
        gate_NF, up_NF = layer.gate_up(layer.feed_forward_norm(hidden_ND)).chunk(2, dim=-1)
        return hidden_ND + layer.down(silu(gate_NF).mul_(up_NF))

    def logits(self, hidden_ND: Tensor, depths: Sequence[int], head_VD: Tensor) -> Tensor:
        """N × V logits of residuals that left after `depths[i]` layers.

        The final norm applies at full depth, and at early exits where the model has `exit_norm`.
        """
        bare = [depth < self.config.num_layers and not self.config.exit_norm for depth in depths]
        if all(bare):
            return head_logits(head_VD, hidden_ND)
        normed_ND = self.weights.final_norm(hidden_ND)
        if any(bare):
            bare_N1 = torch.tensor(bare, device=self.device).unsqueeze(1)
            normed_ND = torch.where(bare_N1, hidden_ND, normed_ND)
        return head_logits(head_VD, normed_ND)

    def _attend(
        self, queries_GMC: Tensor, slots_P: Tensor, keys_SGC: Tensor, values_SGC: Tensor
    ) -> Tensor:
        """One row's G × M × C softmax-weighted values; every operand is freshly allocated."""
        keys_GPC = keys_SGC.index_select(0, slots_P).float().transpose(0, 1)
        values_GPC = values_SGC.index_select(0, slots_P).float().transpose(0, 1)
        scores_GMP = (queries_GMC * self._attention_scale).bmm(keys_GPC.mT)
        return scores_GMP.softmax(-1).bmm(values_GPC)

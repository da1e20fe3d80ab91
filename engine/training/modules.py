"""The trainable decoder: the served model's shape, with residuals at chosen depths.

Parameters carry the canonical checkpoint names, so that exporting is a dictionary copy.
Shape legend: B sequences × T positions, N = B·T rows, D hidden, H query heads, G KV heads,
C head_dim, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import ModelConfig
from engine.model.rotary import rotary_angles
from engine.training.linears import Linear, project


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Positions(NamedTuple):
    """What positions mean for attention: rotary angles, and who sees whom."""

    cos_TC: Tensor
    sin_TC: Tensor
    mask_TT: Tensor
    """Added to scores: 0, and −∞ where a key lies later than the query."""


class Attention(nn.Module):
    """The four attention projections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.q_proj = Linear(config.hidden_size, config.q_size)
        self.k_proj = Linear(config.hidden_size, config.kv_size)
        self.v_proj = Linear(config.hidden_size, config.kv_size)
        self.o_proj = Linear(config.q_size, config.hidden_size)


class FeedForward(nn.Module):
    """The three SwiGLU projections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_ND: Tensor, positions: Positions) -> Tensor:
        """Residual in, residual out; T comes from the rotary tables, B from N / T."""
        config, length = self.config, positions.cos_TC.shape[0]
        attn, mlp = self.self_attn, self.mlp
        normed_ND = self.input_layernorm(hidden_ND)
        q, k, v = (
            x.view(-1, length, x.shape[-1] // config.head_dim, config.head_dim).transpose(1, 2)
            for x in self._project(normed_ND, attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = apply_rotary(q, positions), apply_rotary(k, positions)
        q, k, v = (x.to(self.dtype) for x in (q, k, v))
        attended_NQ = causal_attention(q, k, v, positions.mask_TT)
        hidden_ND = hidden_ND + self._project(attended_NQ, attn.o_proj)[0]
        normed_ND = self.post_attention_layernorm(hidden_ND)
        gate_NF, up_NF = self._project(normed_ND, mlp.gate_proj, mlp.up_proj)
        return hidden_ND + self._project(F.silu(gate_NF) * up_NF, mlp.down_proj)[0]

    def _project(self, x_NK: Tensor, *linears: Linear) -> list[Tensor]:
        return project(self.config, self.dtype, x_NK, *linears)


def causal_attention(q_BHTC: Tensor, k_BGTC: Tensor, v_BGTC: Tensor, mask_TT: Tensor) -> Tensor:
    """Grouped-query attention as plain products (N × H·C, float32).

    At the lengths and head sizes of small models that is faster on CPUs than torch's fused
    attention. Query heads that share a key head are rows of one product.
    """
    batch, num_heads, length, size = q_BHTC.shape
    num_products = batch * k_BGTC.shape[1]
    rows = (q_BHTC * (1.0 / math.sqrt(size))).reshape(num_products, -1, size)
    keys, values = (x.reshape(num_products, length, size) for x in (k_BGTC, v_BGTC))
    scores = torch.bmm(rows, keys.transpose(1, 2)).float()
    scores = scores.view(num_products, -1, length, length) + mask_TT
    shares = scores.softmax(dim=-1).to(values.dtype).view(num_products, -1, length)
    attended = torch.bmm(shares, values).view(batch, num_heads, length, size)
    return attended.transpose(1, 2).reshape(-1, num_heads * size).float()


def apply_rotary(x_BHTC: Tensor, positions: Positions) -> Tensor:
    """Rotate-half rotary positions over the last axis."""
    low, high = x_BHTC.chunk(2, dim=-1)
    return x_BHTC * positions.cos_TC + torch.cat((-high, low), dim=-1) * positions.sin_TC


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """(cos, sin) of every position, each positions × C in float32, computed in float64."""
    angles = torch.from_numpy(rotary_angles(config))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


class TrainableDecoder(nn.Module):
    """The whole model with latent weights, returning residual streams at chosen depths."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, dtype) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.normal_(self.embed_tokens.weight, std=1.0 / math.sqrt(config.hidden_size))
        nn.init.normal_(self.lm_head.weight, std=1.0 / math.sqrt(config.hidden_size))
        cos_TC, sin_TC = rotary_tables(config)
        self.register_buffer("cos", cos_TC, persistent=False)
        self.register_buffer("sin", sin_TC, persistent=False)

    def forward(
        self, tokens_BT: Tensor, exits: Collection[int], dropped: Collection[int] = ()
    ) -> dict[int, Tensor]:
        """Residual streams (N × D) after `exits` layers each; layers in `dropped` are skipped."""
        length = tokens_BT.shape[1]
        positions = Positions(
            self.get_buffer("cos")[:length],
            self.get_buffer("sin")[:length],
            torch.full((length, length), -math.inf).triu(1),
        )
        hidden_ND = self.embed_tokens(tokens_BT.reshape(-1))
        outputs: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if index not in dropped:
                hidden_ND = layer(hidden_ND, positions)
            if index + 1 in exits:
                outputs[index + 1] = hidden_ND
        return outputs

    def head(self, hidden_ND: Tensor, normed: bool) -> Tensor:
        """N × V logits of a residual stream, rounded to the products' dtype."""
        if normed:
            hidden_ND = self.norm(hidden_ND)
        return F.linear(hidden_ND.to(self.dtype), self.lm_head.weight.to(self.dtype))

    def logits(self, hidden_ND: Tensor, exit_layer: int) -> Tensor:
        """The same in float32, with the final norm as the configuration says."""
        normed = self.config.exit_norm or exit_layer == self.config.num_layers
        return self.head(hidden_ND, normed).float()

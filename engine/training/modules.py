"""The trainable decoder: the served model's shape with straight-through quantisers.

Parameters carry the canonical checkpoint names, so that exporting is a dictionary copy.
Shape legend: B sequences × T positions, N = B·T rows, D hidden, H query heads, G KV heads,
C head_dim, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import ModelConfig
from engine.model.rotary import rotary_angles

_EPS = 1e-6


def ternarise(weight: Tensor) -> Tensor:
    """s·{−1, 0, +1} with s = mean|W| and strict thresholds at ±s/2, in the weight's dtype.

    The mean is accumulated in float64 and rounded once, as the loader does it, so that a weight
    at the threshold falls on the same side in training and in serving.
    """
    scale = weight.abs().mean(dtype=torch.float64).to(weight.dtype).clamp_min(_EPS)
    half = 0.5 * scale
    return ((weight > half).to(weight.dtype) - (weight < -half).to(weight.dtype)) * scale


def fake_quantise(x_ND: Tensor, levels: int = 127) -> Tensor:
    """Round each row to `levels` steps of its own largest magnitude, and scale back."""
    peak_N1 = x_ND.abs().amax(dim=-1, keepdim=True).clamp_min(_EPS)
    return (x_ND * levels / peak_N1).round() * (peak_N1 / levels)


class _TernaryMatmul(torch.autograd.Function):
    """y = quantise(x) · ternarise(W)ᵀ for several W at once, both quantisers straight-through."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, *weights: Tensor) -> Tensor:
        quantised_ND = fake_quantise(x_ND)
        ternary = torch.cat([ternarise(weight) for weight in weights])
        ctx.save_for_backward(quantised_ND, ternary)
        ctx.sizes = [weight.shape[0] for weight in weights]
        return quantised_ND @ ternary.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        quantised_ND, ternary = ctx.saved_tensors
        grad_weights = (grad.T @ quantised_ND).split(ctx.sizes)
        return (grad @ ternary, *grad_weights)


class TernaryLinear(nn.Module):
    """A bias-free linear whose latent float weight is ternarised at every use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.normal_(self.weight, std=1.0 / math.sqrt(inputs))


def ternary_matmul(x_ND: Tensor, *linears: TernaryLinear) -> Tensor:
    """Apply linears that share an input as one matrix product; outputs are concatenated."""
    result: Tensor = _TernaryMatmul.apply(x_ND, *(linear.weight for linear in linears))  # pyright: ignore[reportAssignmentType]
    return result


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """The four attention projections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.q_proj = TernaryLinear(config.hidden_size, config.q_size)
        self.k_proj = TernaryLinear(config.hidden_size, config.kv_size)
        self.v_proj = TernaryLinear(config.hidden_size, config.kv_size)
        self.o_proj = TernaryLinear(config.q_size, config.hidden_size)


class FeedForward(nn.Module):
    """The three SwiGLU projections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = TernaryLinear(config.hidden_size, config.intermediate_size)
        self.up_proj = TernaryLinear(config.hidden_size, config.intermediate_size)
        self.down_proj = TernaryLinear(config.intermediate_size, config.hidden_size)


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_ND: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
        """Residual in, residual out; T comes from the rotary tables, B from N / T."""
        config, length = self.config, cos_TC.shape[0]
        attn, mlp = self.self_attn, self.mlp
        normed_ND = self.input_layernorm(hidden_ND)
        qkv = ternary_matmul(normed_ND, attn.q_proj, attn.k_proj, attn.v_proj)
        heads = qkv.view(-1, length, config.num_heads + 2 * config.num_kv_heads, config.head_dim)
        heads = heads.transpose(1, 2)
        num_rotated = config.num_heads + config.num_kv_heads
        rotated = apply_rotary(heads[:, :num_rotated], cos_TC, sin_TC)
        attended = F.scaled_dot_product_attention(
            rotated[:, : config.num_heads],
            rotated[:, config.num_heads :],
            heads[:, num_rotated:],
            is_causal=True,
            enable_gqa=True,
        )
        attended_NQ = attended.transpose(1, 2).reshape(-1, config.q_size)
        hidden_ND = hidden_ND + ternary_matmul(attended_NQ, attn.o_proj)
        normed_ND = self.post_attention_layernorm(hidden_ND)
        gate_NF, up_NF = ternary_matmul(normed_ND, mlp.gate_proj, mlp.up_proj).chunk(2, dim=-1)
        return hidden_ND + ternary_matmul(F.silu(gate_NF) * up_NF, mlp.down_proj)


def apply_rotary(x: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Rotate-half rotary positions over the last axis; x is (…, T, C)."""
    low, high = x.chunk(2, dim=-1)
    return x * cos_TC + torch.cat((-high, low), dim=-1) * sin_TC


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """(cos, sin) of every position, each positions × C in float32, computed in float64."""
    angles = torch.from_numpy(rotary_angles(config))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


class TrainableDecoder(nn.Module):
    """The whole model with latent weights, returning residual streams at chosen depths."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
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
        cos_TC, sin_TC = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        hidden_ND = self.embed_tokens(tokens_BT.reshape(-1))
        outputs: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if index not in dropped:
                hidden_ND = layer(hidden_ND, cos_TC, sin_TC)
            if index + 1 in exits:
                outputs[index + 1] = hidden_ND
        return outputs

    def logits(self, hidden_ND: Tensor, exit_layer: int) -> Tensor:
        """N × V logits of a residual stream; the final norm as the configuration says."""
        if self.config.exit_norm or exit_layer == self.config.num_layers:
            hidden_ND = self.norm(hidden_ND)
        return self.lm_head(hidden_ND)

    def exit_loss(self, hidden_ND: Tensor, targets_N: Tensor, exit_layer: int) -> Tensor:
        """Mean next-token cross-entropy, in nats, of one exit through the shared head."""
        return F.cross_entropy(self.logits(hidden_ND, exit_layer), targets_N)


def parameter_groups(model: nn.Module, weight_decay: float) -> Sequence[dict[str, Any]]:
    """AdamW groups: matrices decay, norm gains do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]

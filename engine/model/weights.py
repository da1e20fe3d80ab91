"""A checkpoint's tensors, arranged for the reference decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.checkpoint.names import EMBEDDING, FINAL_NORM, LM_HEAD, linear_name, norm_names
from engine.checkpoint.source import WeightSource
from engine.model.linears import DenseMatrix, Linear, TernaryMatrix
from engine.model.ops import RMSNorm


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; linears that share an input are fused, which changes no output."""

    attention_norm: RMSNorm
    qkv: Linear
    output: Linear
    feed_forward_norm: RMSNorm
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """The whole model on one device."""

    embedding_VD: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: RMSNorm
    head_VD: torch.Tensor
    """The embedding itself where the model ties them."""


def load_weights(checkpoint: WeightSource, device: torch.device) -> DecoderWeights:
    """Copy a checkpoint to `device`; matrices are held as float32."""
    config = checkpoint.config

    def floats(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(checkpoint.tensor(name), dtype=np.float32)).to(device)

    def fused(layer: int, *linears: str) -> Linear:
        if config.is_dense:
            names = [linear_name(layer, linear) for linear in linears]
            return DenseMatrix.fuse([checkpoint.tensor(name) for name in names], device)
        parts = [checkpoint.linear(layer, linear) for linear in linears]
        return TernaryMatrix.fuse(
            [part.trits for part in parts],
            [part.scale for part in parts],
            device,
            activation_max=config.activation_max,
            hadamard=config.hadamard,
        )

    def norm(name: str) -> RMSNorm:
        return RMSNorm(floats(name), config.rms_norm_eps)

    def layer_weights(layer: int) -> LayerWeights:
        attention_norm, feed_forward_norm = norm_names(layer)
        return LayerWeights(
            attention_norm=norm(attention_norm),
            qkv=fused(layer, "q_proj", "k_proj", "v_proj"),
            output=fused(layer, "o_proj"),
            feed_forward_norm=norm(feed_forward_norm),
            gate_up=fused(layer, "gate_proj", "up_proj"),
            down=fused(layer, "down_proj"),
        )

    embedding_VD = floats(EMBEDDING)
    return DecoderWeights(
        embedding_VD=embedding_VD,
        layers=tuple(layer_weights(layer) for layer in range(config.num_layers)),
        final_norm=norm(FINAL_NORM),
        head_VD=embedding_VD if config.tie_word_embeddings else floats(LM_HEAD),
    )

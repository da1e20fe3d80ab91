"""transformers' own Llama as an oracle for every variant, with linears written from MODEL.md.

Nothing of the engine's arithmetic is used: transforms are products with the Hadamard matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from engine.checkpoint.names import LINEARS, LM_HEAD, linear_name
from engine.config import ModelConfig
from support.memory_checkpoint import MemoryCheckpoint

EDGE = 2e-6
"""An activation that lies so near to the edge between two integers is not decided.

In parts of the row's peak: float32's rounding errors grow to about that in a few layers.
"""


class OracleReading(NamedTuple):
    """What the oracle says of a sequence."""

    logits: NDArray[np.float32]
    """T × V."""
    decided: NDArray[np.bool_]
    """T: whether no activation that the row depends on lies near a quantiser's edge.

    Where one does, correct implementations may take either integer: from there on their logits
    differ by far more than float32 rounding.
    """


class FormulaLinear(nn.Module):
    """A quantised ternary linear as MODEL.md words it, integers and all; remembers its margins."""

    def __init__(
        self, trits: NDArray[np.int8], scale: np.float32, activation_max: int, order: str
    ) -> None:
        super().__init__()
        self.trits = torch.from_numpy(trits).long()
        self.scale = torch.tensor(scale)
        self.largest = activation_max
        self.order = order
        self.edge_distance = torch.empty(0)
        """Of each row of the last call: between the x·Q / a that is nearest and its edge.

        In parts of the row's peak.
        """

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "before":
            x = self._transform(x)
        a = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-6)
        steps = (x * self.largest) / a
        self.edge_distance = (steps - steps.floor() - 0.5).abs().amin(dim=-1) / self.largest
        q = steps.round().clamp(-self.largest, self.largest).long()
        factor = (a / self.largest) * self.scale
        if self.order == "after":
            q = q @ torch.from_numpy(hadamard(q.shape[-1])).long()
            factor = factor / math.sqrt(q.shape[-1])
        y = (q @ self.trits.T).float() * factor
        return y if self.order == "none" else self._transform(y)

    @staticmethod
    def _transform(x: Tensor) -> Tensor:
        size = x.shape[-1]
        matrix = torch.from_numpy(hadamard(size)).double() / math.sqrt(size)
        return (x.double() @ matrix).float()


class LlamaOracle:
    """The model of a checkpoint, computed by transformers."""

    def __init__(self, checkpoint: MemoryCheckpoint) -> None:
        config = checkpoint.config
        self._model = LlamaForCausalLM(llama_config(config)).eval()
        linears = {
            linear_name(layer, linear): (layer, linear)
            for layer in range(0 if config.is_dense else config.num_layers)
            for linear in LINEARS
        }
        self._linears: list[FormulaLinear] = []
        for name, parameter in list(self._model.named_parameters()):
            canonical = name.removeprefix("model.")
            if canonical in linears:
                weight = checkpoint.linear(*linears[canonical])
                linear = FormulaLinear(
                    weight.trits, weight.scale, config.activation_max, config.hadamard
                )
                self._model.set_submodule(name.removesuffix(".weight"), linear)
                self._linears.append(linear)
            elif canonical != LM_HEAD or not config.tie_word_embeddings:
                parameter.data.copy_(torch.from_numpy(np.array(checkpoint.tensor(canonical))))

    def read(self, tokens: Sequence[int]) -> OracleReading:
        """Logits at full depth."""
        with torch.no_grad():
            logits = self._model(torch.tensor([tokens])).logits[0].numpy()
        decided = np.ones(len(tokens), dtype=bool)
        for linear in self._linears:
            decided &= linear.edge_distance.reshape(-1).numpy() > EDGE
        # A row depends on all rows before it.
        return OracleReading(logits, np.logical_and.accumulate(decided))


def llama_config(config: ModelConfig) -> LlamaConfig:
    """The same shape in transformers' words."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {"rope_type": "llama3"} | asdict(config.rope_scaling)
    config_class: Any = LlamaConfig  # Its fields are not all declared.
    return config_class(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=rope | {"rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_word_embeddings,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )

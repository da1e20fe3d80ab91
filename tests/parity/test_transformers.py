"""The reference backend against transformers' Llama with MODEL.md's linears put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.backends.reference import ReferenceBackend
from engine.checkpoint.names import LINEARS, linear_name
from support.float_oracle import assert_same_model
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import sequence_logits

transformers = pytest.importorskip("transformers")


class FormulaLinear(nn.Module):
    """A quantised ternary linear exactly as MODEL.md words it, integers and all."""

    def __init__(self, trits: np.ndarray, scale: np.float32) -> None:
        super().__init__()
        self.trits = torch.from_numpy(trits).long()
        self.scale = torch.tensor(scale)

    def forward(self, x: Tensor) -> Tensor:
        a = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-6)
        q = ((x * 127) / a).round().clamp(-127, 127).long()
        return (q @ self.trits.T).float() * ((a / 127) * self.scale)


def llama(checkpoint: MemoryCheckpoint) -> nn.Module:
    config = checkpoint.config
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            tie_word_embeddings=config.tie_word_embeddings,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
    ).eval()
    for name, parameter in list(model.named_parameters()):
        canonical = name.removeprefix("model.")
        if not canonical.endswith("_proj.weight"):
            parameter.data.copy_(torch.from_numpy(np.array(checkpoint.tensor(canonical))))
    for layer in range(config.num_layers):
        for linear in LINEARS:
            weight = checkpoint.linear(layer, linear)
            path = f"model.{linear_name(layer, linear)}".removesuffix(".weight")
            model.set_submodule(path, FormulaLinear(weight.trits, weight.scale))
    return model


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"hidden_size": 42, "intermediate_size": 72, "num_heads": 6, "head_dim": 6},
        {"num_kv_heads": 1, "tie_word_embeddings": True, "rope_theta": 500.0},
    ],
    ids=["plain", "odd", "tied"],
)
def test_logits_equal_transformers(overrides: dict[str, int]) -> None:
    checkpoint = MemoryCheckpoint(tiny_config(**overrides), seed=11)
    model = llama(checkpoint)
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)

    def expected(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].numpy()

    assert_same_model(
        lambda tokens: sequence_logits(backend, tokens, checkpoint.config.num_layers),
        expected,
        checkpoint.config.vocab_size,
    )

"""The trained model and the served one are the same function."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from engine.backends.reference import ReferenceBackend
from engine.checkpoint.names import LINEARS, is_linear, linear_name
from engine.training.linears import ternarise
from engine.training.modules import TrainableDecoder
from support.float_oracle import assert_same_model
from support.memory_checkpoint import MemoryCheckpoint, MemoryTernary, tiny_config
from support.sequences import sequence_logits


def served(model: TrainableDecoder) -> MemoryCheckpoint:
    """The model's weights as the server would hold them, ternarised by the training code."""
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    linears: dict[tuple[int, str], MemoryTernary] = {}
    for layer in range(model.config.num_layers):
        for linear in LINEARS:
            trits, scale = ternarise(state[linear_name(layer, linear)])
            linears[layer, linear] = MemoryTernary(
                trits.to(torch.int8).numpy(), np.float32(scale.item())
            )
    tensors = {name: tensor.numpy() for name, tensor in state.items() if not is_linear(name)}
    return MemoryCheckpoint.of(model.config, linears, tensors)


@pytest.mark.parametrize("exit_norm", [True, False])
def test_training_and_serving_agree_at_every_exit(exit_norm: bool) -> None:
    config = tiny_config(hidden_size=48, exit_norm=exit_norm)
    torch.manual_seed(4)
    model = TrainableDecoder(config)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.7, 1.3)
    backend = ReferenceBackend(served(model), draft_vocab_size=8)

    def trained_logits(tokens: list[int], depth: int) -> np.ndarray:
        with torch.no_grad():
            hidden = model(torch.tensor([tokens]), (depth,))[depth]
            return model.logits(hidden, depth).numpy()

    for depth in range(1, config.num_layers + 1):
        assert_same_model(
            partial(sequence_logits, backend, depth=depth),
            partial(trained_logits, depth=depth),
            config.vocab_size,
        )

"""What the reference backend computes from a checkpoint's directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backends.reference import ReferenceBackend
from engine.checkpoint.loader import load_checkpoint
from support.sequences import sequence_logits


def reference_logits(
    path: Path, tokens: Sequence[int], exit_layer: int | None = None
) -> NDArray[np.float32]:
    """T × V logits of one sequence, read from all layers or from the first `exit_layer`."""
    with load_checkpoint(path) as checkpoint:
        backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
        return sequence_logits(backend, tokens, exit_layer or checkpoint.config.num_layers)


def assert_greedy(
    path: Path, tokens: Sequence[int], num_prompt_tokens: int, exit_layer: int | None = None
) -> None:
    """Each token after the prompt is the reference backend's likeliest, near ties aside.

    Near: within a quarter of the logits' standard deviation of the best. Other orders of summation
    move activations over a quantiser's edge now and then (`support.float_oracle`).
    """
    logits = reference_logits(path, tokens[:-1], exit_layer)[num_prompt_tokens - 1 :]
    chosen = np.asarray(tokens[num_prompt_tokens:])
    behind = logits.max(axis=1) - logits[np.arange(len(chosen)), chosen]
    assert behind.max() < 0.25 * logits.std(), behind
    assert np.mean(behind == 0) >= 0.85, behind

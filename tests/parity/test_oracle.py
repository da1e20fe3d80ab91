"""The reference backend against the formulas, written down a second time in float64."""

from __future__ import annotations

import numpy as np
import pytest

from engine.backends.reference import ReferenceBackend
from engine.config import ModelConfig
from support.float_oracle import assert_same_model, oracle_logits
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, sequence_logits

MODELS = {
    "plain": tiny_config(),
    "odd": tiny_config(
        hidden_size=40, intermediate_size=72, num_heads=6, num_kv_heads=3, head_dim=6
    ),
    "one kv head, tied, other base": tiny_config(
        num_kv_heads=1, tie_word_embeddings=True, rope_theta=500.0, rms_norm_eps=1e-3
    ),
    "no exit norm": tiny_config(exit_norm=False),
    "as many kv heads": tiny_config(num_kv_heads=4, vocab_size=300, hidden_size=64),
}


def tokens_for(config: ModelConfig, count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, config.vocab_size, count).tolist()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("depth", [1, 4, 6])
def test_logits_follow_the_formulas(name: str, depth: int) -> None:
    checkpoint = MemoryCheckpoint(MODELS[name], seed=7)
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    assert_same_model(
        lambda tokens: sequence_logits(backend, tokens, depth),
        lambda tokens: oracle_logits(checkpoint, tokens, depth),
        checkpoint.config.vocab_size,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 9_000.0},
        {"rms_norm_eps": 1e-1},
        {"exit_norm": False},
        {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_tolerance_notices_a_wrong_formula(change: dict[str, float]) -> None:
    """A mutant of the above: the oracle with another constant must not pass."""
    checkpoint = MemoryCheckpoint(tiny_config(), seed=7)
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    wrong = MemoryCheckpoint.of(tiny_config(**change), checkpoint._linears, checkpoint._tensors)
    with pytest.raises(AssertionError):
        assert_same_model(
            lambda tokens: sequence_logits(backend, tokens, 4),
            lambda tokens: oracle_logits(wrong, tokens, 4),
            wrong.config.vocab_size,
        )


@pytest.mark.parametrize("depth", [2, 6])
def test_logits_do_not_see_the_next_token(depth: int) -> None:
    checkpoint = MemoryCheckpoint(tiny_config())
    backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
    tokens = tokens_for(checkpoint.config, 20)
    logits = sequence_logits(backend, tokens, depth)
    for changed in (1, 9, 19):
        others = tokens.copy()
        others[changed] = (others[changed] + 1) % checkpoint.config.vocab_size
        other_logits = sequence_logits(backend, others, depth)
        assert_same_bits(other_logits[:changed], logits[:changed])
        assert (other_logits[changed:] != logits[changed:]).any(axis=1).all()


def test_damping_dials_the_agreement_of_exits() -> None:
    tokens = tokens_for(tiny_config(), 100)

    def agreement(damping: float) -> float:
        checkpoint = MemoryCheckpoint(tiny_config(), agreement_after=2, damping=damping)
        backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
        early, full = (sequence_logits(backend, tokens, depth) for depth in (2, 6))
        return float((early.argmax(axis=1) == full.argmax(axis=1)).mean())

    rates = [agreement(damping) for damping in (0.0, 0.1, 1.0)]
    assert rates[0] == 1.0
    assert 0.6 < rates[1] < 1.0
    assert rates[2] < 0.5

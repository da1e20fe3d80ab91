"""Scores of all exits against a slow, obvious computation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from engine.backends.protocol import Backend
from engine.backends.reference import ReferenceBackend
from engine.evaluation.perplexity import ExitTally, score_exits
from support.fake_backend import FakeBackend, fake_config
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import sequence_logits

CONFIG = tiny_config(max_position_embeddings=300)


def reference() -> Backend:
    return ReferenceBackend(MemoryCheckpoint(CONFIG, agreement_after=3), draft_vocab_size=8)


def fake() -> Backend:
    return FakeBackend(fake_config(vocab_size=96, max_position_embeddings=300))


def random_window(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, CONFIG.vocab_size, length).tolist()


def obvious(backend: Backend, windows: Sequence[Sequence[int]], depth: int) -> ExitTally:
    """Whole windows at once; token t + 1 is looked up in the log-softmax at position t."""
    tally = ExitTally()
    for window in windows:
        if len(window) < 2:
            continue
        at_exit = sequence_logits(backend, window, depth)
        at_full_depth = sequence_logits(backend, window, backend.config.num_layers)
        for position in range(len(window) - 1):
            logits = [float(x) for x in at_exit[position]]
            log_total = math.log(math.fsum(math.exp(x) for x in logits))
            tally.num_tokens += 1
            tally.negative_log_likelihood += log_total - logits[window[position + 1]]
            tally.num_agreed += int(at_exit[position].argmax() == at_full_depth[position].argmax())
    return tally


@pytest.mark.parametrize("make", [reference, fake])
@pytest.mark.parametrize(
    "lengths", [(2,), (128,), (129,), (130,), (257,), (40, 1, 300, 2)], ids=str
)
def test_equals_the_obvious_computation(
    make: Callable[[], Backend], lengths: tuple[int, ...]
) -> None:
    windows = [random_window(length) for length in lengths]
    tallies = score_exits(make(), windows, (4, 2))
    assert list(tallies) == [2, 4, 6]
    for depth, tally in tallies.items():
        expected = obvious(make(), windows, depth)
        assert tally.num_tokens == expected.num_tokens == sum(n - 1 for n in lengths)
        assert tally.num_agreed == expected.num_agreed
        assert tally.negative_log_likelihood == pytest.approx(
            expected.negative_log_likelihood, rel=1e-6
        )


def test_full_depth_agrees_with_itself_and_exits_as_far_as_they_do() -> None:
    tallies = score_exits(fake(), [random_window(200)], (2, 6))
    assert list(tallies) == [2, 6]
    assert tallies[6].agreement == 1.0
    assert 0.4 < tallies[2].agreement < 0.95


def test_an_unshifted_score_would_be_another() -> None:
    # A model that puts nearly everything on one token: only the shift tells where it is due.
    backend = FakeBackend(fake_config(vocab_size=96), logit_bias={7: 40.0})
    tally = score_exits(backend, [[7, 5, 7, 7, 7]], ())[6]
    assert tally.num_tokens == 4
    assert 25.0 < tally.negative_log_likelihood < 55.0, "one token in four is a surprise"
    assert score_exits(backend, [[5, 7, 7]], ())[6].negative_log_likelihood < 1e-3


def test_scores_stay_finite_for_extreme_logits() -> None:
    backend = FakeBackend(fake_config(vocab_size=96), logit_bias={7: 5000.0})
    tally = score_exits(backend, [[7, 7, 3]], ())[6]
    assert tally.negative_log_likelihood == pytest.approx(5000.0, abs=30.0)


def test_reports_every_window() -> None:
    reports: list[tuple[int, int]] = []
    windows = [random_window(5), random_window(1), random_window(140)]
    score_exits(fake(), windows, (), lambda done, total: reports.append((done, total)))
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_tally_arithmetic() -> None:
    tally = ExitTally(num_tokens=8, num_agreed=6, negative_log_likelihood=8 * math.log(5.0))
    assert tally.perplexity == pytest.approx(5.0)
    assert tally.agreement == 0.75
    assert tally.bits_per_byte(16) == pytest.approx(math.log2(5.0) / 2)
    assert ExitTally(num_tokens=2, negative_log_likelihood=2000.0).perplexity == math.inf

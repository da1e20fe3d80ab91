"""Sampled text has the model's own distribution: exactly, over all texts of three tokens.

The three follow a first token, so that the round which brings them may have two drafts; the
exact probabilities are summed over that first token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from engine.config import EngineConfig
from engine.rounds import RoundRunner, Said, Verdict, token_of
from engine.sampling import noise
from engine.sampling.acceptance import sources
from engine.scheduler.plan import Work
from engine.types import SamplingParams, SpeculativeParams, TokenSource
from support.engine_runs import EngineRun, Model, Submission
from support.fake_backend import TableBackend, fake_config
from support.letters import letters_tokenizer
from support.oracle import FromScratch

VOCAB_SIZE, NUM_LAYERS, DRAFT_LAYERS = 6, 4, 2
PROMPT = (2, 4)
NUM_DRAFTS, LENGTH = 2, 3
NUM_SEEDS, NUM_MUTANT_SEEDS = 32_768, 4_096
BATCH = 256
CONFIG = EngineConfig(
    max_num_seqs=BATCH,
    max_batched_tokens=4 * BATCH,
    block_size=8,
    max_model_len=8,
    kv_cache_tokens=16 * BATCH,
    draft_exit_layer=DRAFT_LAYERS,
)
MIN_EXPECTED = 5.0
"""Cells that expect fewer are pooled, as usual for such tests."""
MIN_P_VALUE = 1e-3

Counts = NDArray[np.float64]


def make_model() -> Model:
    config = fake_config(VOCAB_SIZE, NUM_LAYERS, 8)

    def make_backend() -> TableBackend:
        return TableBackend(config, agreement=0.45, seed=3)

    return Model(config, letters_tokenizer(VOCAB_SIZE), make_backend, FromScratch(make_backend))


MODEL = make_model()


def noise_table(num_seeds: int) -> NDArray[np.uint32]:
    """Positions × seeds × ids: `noise.words` of all that these tests sample, worked out at once.

    The generator's ten rounds on six ids at a time would take most of the tests' time.
    """
    zero = np.zeros(1, dtype=np.uint64)
    seeds = np.arange(num_seeds, dtype=np.uint64)[:, None]
    table = np.empty((len(PROMPT) + 1 + LENGTH, num_seeds, 8), dtype=np.uint32)
    for position in range(len(table)):
        counter = (zero + np.uint64(position), np.arange(2, dtype=np.uint64), zero, zero)
        # Arrays for the key's words: the generator is arithmetic, and takes them as they come.
        key: Any = (seeds, np.zeros_like(seeds))
        words = np.broadcast_arrays(*noise.philox4x32(counter, key))
        table[position] = np.stack(words, axis=-1).reshape(num_seeds, 8)
    return table


@pytest.fixture(scope="module")
def table() -> NDArray[np.uint32]:
    return noise_table(NUM_SEEDS)


@pytest.fixture
def quick_noise(monkeypatch: pytest.MonkeyPatch, table: NDArray[np.uint32]) -> None:
    def words(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        return table[position, seed, ids]

    monkeypatch.setattr(noise, "words", words)


def exact_probabilities() -> Counts:
    """P(a, b, c) of the text after the prompt and any token: sums of products of softmaxes."""
    backend = MODEL.make_backend()
    assert isinstance(backend, TableBackend)
    weights = np.exp(backend.table(NUM_LAYERS).astype(np.float64))
    chances = weights / weights.sum(axis=-1, keepdims=True)
    last = PROMPT[-1]
    return np.einsum("i,ia,iab,abc->abc", chances[PROMPT], chances[last], chances, chances)


def sampled_counts(num_seeds: int) -> tuple[Counts, Counter[TokenSource]]:
    """How often each text came, over seeds 0..num_seeds−1, and where its tokens came from."""
    counts = np.zeros((VOCAB_SIZE,) * LENGTH)
    seen: Counter[TokenSource] = Counter()
    run = EngineRun(MODEL, MODEL.make_backend(), CONFIG)
    for start in range(0, num_seeds, BATCH):
        submissions = [
            Submission(
                PROMPT,
                SamplingParams(
                    max_tokens=1 + LENGTH,
                    seed=seed,
                    speculative=SpeculativeParams(num_speculations=NUM_DRAFTS),
                ),
            )
            for seed in range(start, start + BATCH)
        ]
        for answer in run.answer(submissions).values():
            counts[answer.token_ids[1:]] += 1
            seen.update(token.source for token in answer.tokens[1:])
    return counts, seen


def p_value(counts: Counts, probabilities: Counts) -> float:
    """The G-test: P(a likelihood ratio so bad, if the texts have these probabilities)."""
    expected = probabilities.ravel() * counts.sum()
    observed = counts.ravel()
    is_small = expected < MIN_EXPECTED
    expected = np.append(expected[~is_small], expected[is_small].sum())
    observed = np.append(observed[~is_small], observed[is_small].sum())
    some = observed > 0
    statistic = 2.0 * float((observed[some] * np.log(observed[some] / expected[some])).sum())
    return float(chi2.sf(statistic, len(expected) - 1))


def accept_unchecked(self: RoundRunner, work: Work, said: Sequence[Said]) -> Verdict:
    """Every draft stands; the bonus token comes from where it should."""
    request, drafts = work.request, work.request.drafts
    bonus = token_of(said[-1], request, len(drafts))
    return Verdict(
        work,
        [*drafts, bonus],
        sources(len(drafts), len(drafts)),
        num_drafts=len(drafts),
        draft_exit_layer=request.draft_exit_layer,
    )


def test_the_noise_table_is_the_noise(table: NDArray[np.uint32]) -> None:
    ids = np.arange(VOCAB_SIZE)
    for seed in (0, 1, 255, NUM_SEEDS - 1):
        for position in range(len(table)):
            np.testing.assert_array_equal(
                table[position, seed, :VOCAB_SIZE], noise.words(seed, position, ids)
            )


@pytest.mark.usefixtures("quick_noise")
def test_three_tokens_are_jointly_distributed_as_the_model_says() -> None:
    probabilities = exact_probabilities()
    assert probabilities.sum() == pytest.approx(1.0)
    counts, seen = sampled_counts(NUM_SEEDS)
    assert counts.sum() == NUM_SEEDS
    for source in (TokenSource.DRAFT, TokenSource.CORRECTED, TokenSource.BONUS):
        assert seen[source] > NUM_SEEDS / 5, seen
    assert p_value(counts, probabilities) > MIN_P_VALUE


@pytest.mark.usefixtures("quick_noise")
def test_unchecked_drafts_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoundRunner, "_accept", accept_unchecked)
    counts, _ = sampled_counts(NUM_MUTANT_SEEDS)
    assert p_value(counts, exact_probabilities()) < 1e-12

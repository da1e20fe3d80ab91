"""Speculation costs the rows that it must, and no others: drafts' layers are never run twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from engine.backends.protocol import Row
from engine.config import EngineConfig
from engine.core import StepResult
from engine.types import DraftMethod, SamplingParams, SpeculativeParams
from support.engine_runs import EngineRun, Submission
from support.fake_backend import FakeBackend
from support.history_models import ModelSpec, make_model

SPEC = ModelSpec(agreement=0.7)
NUM_LAYERS = 6
CONFIG = EngineConfig(
    block_size=4, max_model_len=64, kv_cache_tokens=1024, enable_prefix_caching=False
)
PROMPTS = ((3, 1, 4, 1, 5, 9), (2, 6, 5, 3), (8, 9, 7, 9, 3, 2, 3), (1, 1))
MAX_TOKENS = 25


@dataclass
class Steps:
    """The sweeps of each engine step, and its results."""

    backend: FakeBackend
    sweeps: list[list[tuple[Row, ...]]] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)
    num_seen: int = 0

    def see(self, result: StepResult) -> None:
        log = self.backend.counters.log
        self.sweeps.append(log[self.num_seen :])
        self.results.append(result)
        self.num_seen = len(log)


def run(params: Sequence[SamplingParams]) -> Steps:
    """Answer the prompts, all at once."""
    model = make_model("fake", SPEC)
    backend = model.make_backend()
    assert isinstance(backend, FakeBackend)
    steps = Steps(backend)
    submissions = [Submission(p, each) for p, each in zip(PROMPTS, params, strict=False)]
    EngineRun(model, backend, CONFIG).answer(submissions, steps.see)
    return steps


def params(exit_layer: int, draft_layer: int | None, num_drafts: int, seed: int) -> SamplingParams:
    method = DraftMethod.EARLY_EXIT if draft_layer else DraftMethod.NGRAM
    return SamplingParams(
        max_tokens=MAX_TOKENS,
        ignore_eos=True,
        seed=seed,
        exit_layer=exit_layer,
        speculative=SpeculativeParams(
            method=method, exit_layer=draft_layer, num_speculations=num_drafts
        ),
    )


MIXED = (
    params(6, 2, 5, 0),
    params(6, 3, 2, 1),
    params(4, 1, 7, 2),
    params(5, None, 4, 3),
)


@pytest.mark.parametrize("mix", [MIXED[:1], MIXED[1:3], MIXED], ids=len)
def test_a_round_runs_each_layer_of_a_position_once(mix: Sequence[SamplingParams]) -> None:
    steps = run(mix)
    num_resumed = 0
    for sweeps in steps.sweeps:
        runs: Counter[tuple[int, int, int]] = Counter()
        sequences: dict[tuple[int, int], list[Row]] = {}
        for rows in sweeps:
            for row in rows:
                runs.update(
                    (row.sequence, row.position, layer) for layer in range(row.first, row.last)
                )
                sequences.setdefault((row.sequence, row.position), []).append(row)
        # Sequences are numbered anew in each step: the keys mean the same within one.
        assert max(runs.values()) == 1
        for parts in sequences.values():
            assert parts[0].first == 0
            if len(parts) > 1:
                num_resumed += 1
                drafted, verified = parts
                assert drafted.last == verified.first and verified.token is None
    assert num_resumed > 20


@pytest.mark.parametrize("mix", [MIXED[:1], MIXED[1:3], MIXED], ids=len)
def test_a_round_is_its_longest_draft_and_one_sweep_for_everybody(
    mix: Sequence[SamplingParams],
) -> None:
    steps = run(mix)
    num_drafting = 0
    for sweeps, result in zip(steps.sweeps, steps.results, strict=True):
        *passes, final = sweeps
        drafted: Counter[int] = Counter()
        for rows in passes:
            assert all(row.target_state is not None for row in rows)
            assert len({row.sequence for row in rows}) == len(rows), "a pass is one token each"
            drafted.update(row.sequence for row in rows)
        assert len(passes) == max(drafted.values(), default=0)
        assert all(row.target_state is None for row in final)
        resumed = Counter(row.sequence for row in final if row.source_state is not None)
        assert resumed == drafted, "all that was drafted is verified, and nothing else"
        bonus = {row.sequence for row in final if row.source_state is None}
        assert bonus == {row.sequence for row in final}, "the last draft's row runs whole"
        assert [p.num_rows for p in result.stats.passes] == [len(rows) for rows in sweeps]
        num_drafting += len(passes)
    assert num_drafting > 10
    assert steps.backend.counters.num_sweeps == sum(map(len, steps.sweeps))


def test_drafting_costs_every_layer_alike() -> None:
    """A round of γ drafts runs γ + 1 rows through every layer, whichever the draft exit."""
    steps = run(MIXED[:2])
    num_final_rows = sum(len(sweeps[-1]) for sweeps in steps.sweeps)
    rows_per_layer = steps.backend.counters.rows_per_layer
    assert rows_per_layer.tolist() == [num_final_rows] * NUM_LAYERS


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
@pytest.mark.parametrize("drafting", ["off", "early-exit", "ngram"])
def test_early_exit_answers_run_no_deeper_layer(depth: int, drafting: str) -> None:
    draft_layer = depth - 1 if drafting == "early-exit" else None
    num_drafts = 0 if drafting == "off" else 4
    steps = run([params(depth, draft_layer or None, num_drafts, seed) for seed in range(3)])
    rows_per_layer = steps.backend.counters.rows_per_layer
    assert (rows_per_layer[:depth] > 0).all()
    assert not rows_per_layer[depth:].any()


def test_without_drafts_every_token_costs_one_row() -> None:
    steps = run([params(6, 2, 0, seed) for seed in range(4)])
    num_rows = sum(map(len, PROMPTS)) + 4 * (MAX_TOKENS - 1)
    assert steps.backend.counters.rows_per_layer.tolist() == [num_rows] * NUM_LAYERS
    assert steps.backend.counters.num_head_rows == 4 * MAX_TOKENS
    assert steps.backend.counters.num_draft_head_rows == 0

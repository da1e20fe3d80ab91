"""Speeds, speed-ups and the split of time, on a backend that takes known times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.build import LoadedModel
from engine.errors import ConfigError
from engine.evaluation.speed import (
    Sample,
    Setting,
    SpeedBench,
    all_settings,
    count_changed_tokens,
    measure_speeds,
)
from engine.evaluation.summary import speed_results, speed_warnings
from engine.evaluation.timing import TimedBackend, TimeSplit
from engine.metrics import PassStats
from engine.tokenizer import Tokenizer
from support.fake_backend import fake_config
from support.ticking_backend import DRAFT_HEAD_S, HEAD_S, TickingBackend
from support.tokenizers import write_tokenizer

VOCAB_SIZE = 300
NUM_LAYERS = 6
PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10], [11, 12]]
PLAIN_ROUND_S = NUM_LAYERS + HEAD_S


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer.from_directory(write_tokenizer(path, VOCAB_SIZE))


def bench(
    tokenizer: Tokenizer, context: int = 256, max_batch_size: int = 4, **options: Any
) -> SpeedBench:
    config = fake_config(vocab_size=VOCAB_SIZE, max_position_embeddings=context)
    backend = TickingBackend(config, **options)
    return SpeedBench(LoadedModel(config, tokenizer, backend), max_batch_size, backend.clock)


@pytest.mark.parametrize("exit_layer", [2, 6])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_plain_decoding(tokenizer: Tokenizer, exit_layer: int, batch_size: int) -> None:
    setting = Setting(exit_layer, batch_size)
    sample = bench(tokenizer).run(setting, PROMPTS[:batch_size], 8)
    assert sample.tokens_per_s == pytest.approx(batch_size / (exit_layer + HEAD_S))
    assert sample.first_token_s == sample.prefill_s == pytest.approx(exit_layer + HEAD_S)
    assert sample.num_tokens == 8 * batch_size
    assert sample.num_rounds == sample.num_drafted == 0
    assert sample.split == TimeSplit(layers_s=8.0 * exit_layer, head_s=8 * HEAD_S)
    assert [len(tokens) for tokens in sample.completions] == [9] * batch_size


def test_drafts_that_are_all_accepted(tokenizer: Tokenizer) -> None:
    setting = Setting(NUM_LAYERS, 2, draft_exit_layer=2, num_speculations=4)
    sample = bench(tokenizer, agreement=1.0).run(setting, PROMPTS[:2], 10)
    # Four draft passes of two layers; then the last draft's row runs all layers.
    round_s = 4 * (2 + DRAFT_HEAD_S) + PLAIN_ROUND_S
    assert sample.tokens_per_s == pytest.approx(2 * 5 / round_s)
    assert (sample.num_rounds, sample.num_drafted, sample.num_accepted) == (4, 16, 16)
    assert sample.split == TimeSplit(
        draft_layers_s=2 * 4 * 2,
        draft_head_s=2 * 4 * DRAFT_HEAD_S,
        layers_s=2 * NUM_LAYERS,
        head_s=2 * HEAD_S,
    )


def test_medians_and_ratios_of_settings_that_take_turns(tokenizer: Tokenizer) -> None:
    settings = list(all_settings((2, 4, NUM_LAYERS), NUM_LAYERS, (1, 3), (1, 4, "auto")))
    assert len(settings) == 2 * (3 + 2 * 3)
    reports: list[tuple[int, int]] = []
    samples = measure_speeds(
        bench(tokenizer, agreement=1.0),
        settings,
        PROMPTS,
        num_new_tokens=10,
        num_repeats=3,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert reports[-1] == (4 * len(settings), 4 * len(settings))
    assert list(samples) == settings and all(len(taken) == 3 for taken in samples.values())
    results = {
        (r.exit_layer, r.batch_size, r.draft_exit_layer, r.num_speculations): r
        for r in speed_results(samples, NUM_LAYERS)
    }
    full = results[NUM_LAYERS, 3, None, None]
    assert full.tokens_per_s == pytest.approx(3 / PLAIN_ROUND_S) and full.speedup == 1
    assert full.acceptance_rate is full.mean_acceptance_length is None
    assert full.time.layers_ms == pytest.approx(1e3 * NUM_LAYERS / 3)
    shallow = results[2, 3, None, None]
    assert shallow.speedup == pytest.approx(PLAIN_ROUND_S / (2 + HEAD_S))
    assert shallow.first_token_ms == pytest.approx(1e3 * (2 + HEAD_S)) == shallow.prefill_ms
    drafted = results[NUM_LAYERS, 1, 4, 4]
    round_s = 4 * (4 + DRAFT_HEAD_S) + PLAIN_ROUND_S
    assert drafted.speedup == pytest.approx(5 * PLAIN_ROUND_S / round_s)
    assert (drafted.acceptance_rate, drafted.mean_acceptance_length) == (1, 5)
    assert drafted.time.draft_head_ms == pytest.approx(1e3 * 4 * DRAFT_HEAD_S / 5)
    assert len(drafted.samples) == 3
    assert list(speed_warnings(list(results.values()), 0)) == []


def test_settings_of_a_repeat_share_prompts_and_repeats_do_not(tokenizer: Tokenizer) -> None:
    settings = [Setting(NUM_LAYERS, 2), Setting(NUM_LAYERS, 2, 2, 3)]
    samples = measure_speeds(bench(tokenizer), settings, PROMPTS, num_new_tokens=20, num_repeats=2)
    plain, drafted = samples.values()
    for one, other in zip(plain, drafted, strict=True):
        for ours, theirs in zip(one.completions, other.completions, strict=True):
            length = min(len(ours), len(theirs))
            assert length >= 10 and ours[:length] == theirs[:length]
    assert plain[0].completions != plain[1].completions
    changed, compared = count_changed_tokens(samples, NUM_LAYERS)
    assert changed == 0 and compared > 60


def test_a_changed_token_is_counted() -> None:
    def sample(*tokens: int) -> Sample:
        return Sample(1.0, 1.0, 1.0, len(tokens), 0, 0, 0, TimeSplit(), (tokens,))

    samples = {
        Setting(6, 1): [sample(1, 2, 3, 4)],
        Setting(6, 1, 2, 4): [sample(1, 2, 9)],
        Setting(2, 1): [sample(7, 7, 7)],
    }
    assert count_changed_tokens(samples, 6) == (1, 3)
    (warning,) = speed_warnings([], 1)
    assert "drafting changed 1 tokens" in warning


def test_prompts_that_take_two_sweeps_wait_unequally(tokenizer: Tokenizer) -> None:
    # 512 prompt rows go into one sweep: the third prompt's rest is read beside the others' tokens.
    sample = bench(tokenizer, context=256).run(Setting(NUM_LAYERS, 3), [[1] * 200] * 3, 4)
    assert sample.prefill_s == pytest.approx(2 * PLAIN_ROUND_S)
    assert sample.first_token_s == pytest.approx((1 + 1 + 2) / 3 * PLAIN_ROUND_S)


def test_a_context_that_ends_early_ends_the_sample(tokenizer: Tokenizer) -> None:
    sample = bench(tokenizer, context=16).run(Setting(NUM_LAYERS, 2), [[1] * 8, [2] * 8], 100)
    # The first token comes with the prompt; the other seven fill the context.
    assert sample.num_tokens == 14
    assert sample.tokens_per_s == pytest.approx(2 / PLAIN_ROUND_S)


def test_a_context_without_room_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="context is too short"):
        bench(tokenizer, context=2).run(Setting(NUM_LAYERS, 1), [[1]], 4)


def test_uneven_samples_raise_a_doubt(tokenizer: Tokenizer) -> None:
    samples = measure_speeds(
        bench(tokenizer), [Setting(6, 1), Setting(2, 1)], PROMPTS, num_new_tokens=4, num_repeats=2
    )
    (first, *_), *_ = samples.values()
    samples[Setting(6, 1)][0] = replace(first, tokens_per_s=2 * first.tokens_per_s)
    (warning,) = speed_warnings(speed_results(samples, NUM_LAYERS), 0)
    assert "samples of 1 of 2 speeds" in warning and "other work" in warning


def test_time_is_told_apart_by_passes() -> None:
    passes = [PassStats("draft", 2, 1, 0.0), PassStats("draft", 2, 1, 0.0)]
    passes.append(PassStats("verify", 6, 3, 0.0))
    calls = [("sweep", 1.0), ("draft_head", 0.1), ("sweep", 2.0), ("draft_head", 0.2)]
    calls += [("sweep", 4.0), ("head", 0.4)]
    split = TimeSplit.of_round(calls, passes, 10.0)  # pyright: ignore[reportArgumentType]
    assert split.draft_layers_s == 3.0 and split.layers_s == 4.0
    assert split.draft_head_s == pytest.approx(0.3) and split.head_s == 0.4
    assert split.outside_s == pytest.approx(2.3)
    assert split.total_s == pytest.approx(10.0)
    assert TimeSplit.sum([split, split]).layers_s == 8.0


def test_a_timed_backend_passes_everything_on() -> None:
    inner = TickingBackend(fake_config())
    timed = TimedBackend(inner, inner.clock).as_backend()
    assert (timed.name, timed.config) == ("fake", inner.config)
    assert timed.draft_ids is inner.draft_ids
    with pytest.raises(AttributeError):
        timed.no_such_thing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]

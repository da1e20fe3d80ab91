"""The synchronous engine: how choices end, what they are sent, and what is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.backends.protocol import Backend
from engine.build import EngineParts
from engine.core import StepResult
from engine.metrics import DraftStats, StepStats
from engine.types import DraftMethod, FinishReason, SamplingParams, SpeculativeParams, TokenSource
from support.engine_parts import (
    FIRST_CHARACTER,
    Clock,
    Ledger,
    make_parts,
    run_to_end,
    steps_to_end,
)
from support.fake_backend import FakeBackend, fake_config
from support.script_backend import ScriptBackend

EOS = 60
CONFIG = fake_config(vocab_size=64, num_layers=4, max_position_embeddings=64, eos_token_ids=(EOS,))
PROMPT = [5, 6, 7, 8, 9]
DRAFT, CORRECTED, BONUS, PLAIN = (
    TokenSource.DRAFT,
    TokenSource.CORRECTED,
    TokenSource.BONUS,
    TokenSource.PLAIN,
)


def script_of(*new_tokens: int) -> list[int]:
    """After the prompt of five tokens come these, then 1 for ever."""
    return [0] * (len(PROMPT) - 1) + [*new_tokens, *([1] * 64)]


def scripted(script: Sequence[int], draft_script: Sequence[int] | None = None) -> ScriptBackend:
    return ScriptBackend(CONFIG, script, draft_script)


def parts_over(backend: Backend, clock: Clock | None = None, **config: Any) -> EngineParts:
    return make_parts(backend, clock, **{"draft_exit_layer": 2, "block_size": 4, **config})


def drafting(num: int) -> SpeculativeParams:
    return SpeculativeParams(exit_layer=2, num_speculations=num)


def start(parts: EngineParts, name: str = "r", **fields: Any) -> None:
    fields = {"temperature": 0.0, "speculative": SpeculativeParams(enabled=False), **fields}
    prompt = fields.pop("prompt", PROMPT)
    parts.core.add(parts.intake.make_requests(name, prompt, SamplingParams(**fields)))


def complete(backend: Backend, **fields: Any) -> Ledger:
    parts = parts_over(backend)
    start(parts, **fields)
    return run_to_end(parts.core)


def text(*tokens: int) -> str:
    return "".join(chr(FIRST_CHARACTER + token) for token in tokens)


def total(results: Sequence[StepResult], name: str) -> int:
    return sum(getattr(result.stats, name) for result in results)


def all_drafts(results: Sequence[StepResult]) -> list[DraftStats]:
    return [draft for result in results for draft in result.stats.drafts]


def all_generated(results: Sequence[StepResult]) -> Counter[tuple[int, TokenSource]]:
    counts: Counter[tuple[int, TokenSource]] = Counter()
    for result in results:
        counts.update(result.stats.generated)
    return counts


# --- how choices end -------------------------------------------------------------------------


@pytest.mark.parametrize("num_drafts", [0, 3, 16])
@pytest.mark.parametrize(
    ("fields", "tokens", "shown", "reason", "stop_reason"),
    [
        ({"max_tokens": 3}, (10, 11, 12), (10, 11, 12), "length", None),
        ({}, (10, 11, 12, EOS), (10, 11, 12), "stop", None),
        ({"ignore_eos": True, "max_tokens": 5}, (10, 11, 12, EOS, 13), None, "length", None),
        ({"stop_token_ids": (12,)}, (10, 11, 12), (10, 11, 12), "stop", 12),
        ({"stop": (text(11, 12),)}, (10, 11, 12), (10,), "stop", text(11, 12)),
        (
            {"stop": (text(11, 12),), "include_stop_str_in_output": True},
            (10, 11, 12),
            (10, 11, 12),
            "stop",
            text(11, 12),
        ),
        ({"stop": (text(10),), "min_tokens": 3}, (10, 11, 12, EOS), (10, 11, 12), "stop", None),
        ({"max_tokens": 4, "stop_token_ids": (EOS,)}, (10, 11, 12, EOS), None, "stop", None),
    ],
)
def test_finish_reasons(
    num_drafts: int,
    fields: dict[str, Any],
    tokens: tuple[int, ...],
    shown: tuple[int, ...] | None,
    reason: str,
    stop_reason: str | int | None,
) -> None:
    """The same however many tokens one round brings."""
    fields = {"max_tokens": 20, "speculative": drafting(num_drafts), **fields}
    ledger = complete(scripted(script_of(10, 11, 12, EOS, 13)), **fields)
    assert ledger.token_ids("r") == list(tokens)
    if shown is not None:
        assert ledger.text("r") == text(*shown)
    last = ledger.last("r")
    assert (last.finish_reason, last.stop_reason) == (reason, stop_reason)
    assert last.metrics is not None and last.metrics.num_generated_tokens == len(tokens)


def test_max_tokens_0_ends_at_once() -> None:
    parts = parts_over(scripted(script_of(10)))
    start(parts, max_tokens=0)
    assert parts.core.has_work
    result = parts.core.step()
    (output,) = result.outputs
    assert (output.tokens, output.finish_reason) == ((), FinishReason.LENGTH)
    assert output.metrics is not None and output.metrics.num_prompt_tokens == 5
    assert result.stats.passes == [] and not parts.core.has_work


@pytest.mark.parametrize("num_prompt", [1, 5, 64])
def test_max_tokens_0_can_score_the_prompt(num_prompt: int) -> None:
    backend = FakeBackend(CONFIG)
    prompt = [(7 * i) % 50 for i in range(num_prompt)]
    parts = parts_over(backend, kv_cache_tokens=64, max_batched_tokens=6)
    start(parts, max_tokens=0, prompt_logprobs=2, prompt=prompt)
    ledger = run_to_end(parts.core)
    (output,) = ledger.outputs["r", 0]
    assert (output.tokens, output.finish_reason) == ((), FinishReason.LENGTH)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    scores = output.prompt_logprobs[1:]
    assert [score.token_id for score in scores if score] == prompt[1:]
    assert all(score and len(score.top) == 2 for score in scores)
    assert parts.core.cache.usage_ratio == 0.0


def test_a_held_back_stop_string_is_released_at_the_end() -> None:
    """The text may be the beginning of a stop string: it comes with the last output."""
    backend = scripted(script_of(10, 11, 12))
    ledger = complete(backend, max_tokens=2, stop=(text(10, 11, 12),))
    outputs = ledger.outputs["r", 0]
    assert [len(output.tokens) for output in outputs] == [2]
    assert ledger.text("r") == text(10, 11)


def test_logprobs_are_those_of_the_chosen_tokens() -> None:
    ledger = complete(
        scripted(script_of(10, 11)), max_tokens=2, logprobs=1, speculative=drafting(3)
    )
    scored = [token.logprobs for output in ledger.outputs["r", 0] for token in output.tokens]
    expected = 5.0 - np.log(np.exp(5.0) + 63)
    for token, logprobs in zip((10, 11), scored, strict=True):
        assert logprobs is not None and logprobs.token_id == token
        assert logprobs.top == ((token, logprobs.logprob),)
        assert logprobs.logprob == pytest.approx(expected, rel=1e-6)


# --- abort and failure -----------------------------------------------------------------------


def test_abort_reports_what_was_held_back() -> None:
    parts = parts_over(scripted(script_of(10, 11, 12)))
    start(parts, max_tokens=20, stop=(text(10, 11, 12, 13),))
    ledger = Ledger()
    ledger.note(parts.core.step().outputs)
    ledger.note(parts.core.step().outputs)
    assert ledger.outputs == {}
    parts.core.abort("r")
    ledger.note(parts.core.step().outputs)
    assert ledger.text("r") == text(10, 11)
    assert ledger.reason("r") is FinishReason.ABORT
    assert not parts.core.has_work and parts.core.cache.usage_ratio == 0.0


def test_abort_of_the_unknown_is_ignored() -> None:
    parts = parts_over(scripted(script_of(10)))
    start(parts, max_tokens=3)
    parts.core.abort("somebody else")
    assert run_to_end(parts.core).reason("r") is FinishReason.LENGTH
    parts.core.abort("r")
    assert not parts.core.has_work


def test_fail_all_answers_everybody() -> None:
    parts = parts_over(scripted(script_of(10)), max_num_seqs=1)
    start(parts, "running", max_tokens=20)
    start(parts, "waiting", max_tokens=20, n=2)
    parts.core.step()
    parts.core.fail_all("no more", "shutting_down")
    outputs = parts.core.step().outputs
    assert {(o.request_id, o.index) for o in outputs} == {
        ("running", 0),
        ("waiting", 0),
        ("waiting", 1),
    }
    assert {(o.finish_reason, o.error, o.error_code) for o in outputs} == {
        (FinishReason.ERROR, "no more", "shutting_down")
    }
    assert not parts.core.has_work and parts.core.cache.usage_ratio == 0.0


# --- speculation, counted --------------------------------------------------------------------


def test_sources_and_drafts_of_a_round_with_a_rejection() -> None:
    """Drafts 11 12 99 against 11 12 13: two accepted, one corrected; then all are accepted."""
    wrong = script_of(10, 11, 12, 33)
    parts = parts_over(scripted(script_of(10, 11, 12, 13), wrong))
    start(parts, max_tokens=8, speculative=drafting(3))
    results = steps_to_end(parts.core)
    sources = [[t.source for o in r.outputs for t in o.tokens] for r in results]
    assert sources == [[PLAIN], [DRAFT, DRAFT, CORRECTED], [DRAFT, DRAFT, DRAFT, BONUS]]
    assert all_drafts(results) == [DraftStats(2, 3, 2), DraftStats(2, 3, 3)]
    assert all_generated(results) == {
        (4, PLAIN): 1,
        (4, DRAFT): 5,
        (4, CORRECTED): 1,
        (4, BONUS): 1,
    }
    metrics = results[-1].outputs[0].metrics
    assert metrics is not None and metrics.speculation is not None
    assert metrics.speculation.accepted_per_position == (2, 2, 1)
    assert (metrics.speculation.num_drafts, metrics.speculation.draft_exit_layer) == (2, 2)


def test_drafts_beyond_the_end_count_for_nothing() -> None:
    """Five drafts are right, but a stop token is the second: two were delivered and judged."""
    parts = parts_over(scripted(script_of(10, 11, 12, 13, 14, 15)))
    start(parts, max_tokens=20, speculative=drafting(5), stop=(text(12),))
    results = steps_to_end(parts.core)
    assert all_drafts(results) == [DraftStats(2, 2, 2)]
    assert all_generated(results) == {(4, PLAIN): 1, (4, DRAFT): 2}
    speculation = results[-1].outputs[0].metrics
    assert speculation is not None and speculation.speculation is not None
    assert speculation.speculation.num_draft_tokens == 2


def test_drafting_stops_after_a_drafted_eos() -> None:
    backend = scripted(script_of(10, EOS, 12, 13))
    parts = parts_over(backend)
    start(parts, max_tokens=20, speculative=drafting(8))
    parts.core.step()
    before = backend.counters.num_sweeps
    parts.core.step()
    # One draft pass, one verification.
    assert backend.counters.num_sweeps - before == 2
    assert not parts.core.has_work


def test_a_round_drafts_no_more_than_can_be_delivered() -> None:
    parts = parts_over(scripted(script_of(10, 11, 12, 13)))
    start(parts, max_tokens=4, speculative=drafting(16))
    results = steps_to_end(parts.core)
    assert all_drafts(results) == [DraftStats(2, 2, 2)]
    assert len(results) == 2


def test_ngram_drafts_are_counted_at_depth_0() -> None:
    parts = parts_over(scripted(script_of(8, 9, 5, 6, 7)), ngram_min=1)
    params = SpeculativeParams(method=DraftMethod.NGRAM, num_speculations=2)
    start(parts, max_tokens=6, prompt=[7, 8, 9, 5, 7], speculative=params)
    results = steps_to_end(parts.core)
    assert all_drafts(results)[0] == DraftStats(0, 2, 2)
    assert results[1].outputs[0].tokens[-1].source is BONUS
    assert {p.phase for r in results[1:] for p in r.stats.passes} <= {"verify", "decode"}


def test_ngram_drafts_stop_after_an_eos_too() -> None:
    """The text has an EOS after 7 8: it is drafted, and what follows it there is not."""
    backend = scripted(script_of(8, EOS))
    parts = parts_over(backend, ngram_min=1)
    params = SpeculativeParams(method=DraftMethod.NGRAM, num_speculations=4)
    start(parts, max_tokens=20, prompt=[7, 8, EOS, 9, 7], speculative=params)
    results = steps_to_end(parts.core)
    assert [p.num_rows for p in results[1].stats.passes] == [2]
    assert all_drafts(results) == [DraftStats(0, 1, 1)]


def test_passes_say_what_ran() -> None:
    parts = parts_over(scripted(script_of(10, 11, 12, 13, 14)))
    start(parts, max_tokens=6, speculative=drafting(2))
    results = steps_to_end(parts.core)
    ran = [[(p.phase, p.exit_layer, p.num_rows) for p in r.stats.passes] for r in results]
    assert ran[0] == [("prefill", 4, 5)]
    assert ran[1] == [("draft", 2, 1), ("draft", 2, 1), ("verify", 4, 3)]
    start(parts, max_tokens=6)
    parts.core.step()
    start(parts, "late", prompt=[1, 2, 3, 4, 5], max_tokens=2)
    (mixed,) = parts.core.step().stats.passes
    assert mixed.phase == "mixed"


# --- counting --------------------------------------------------------------------------------


def test_prompt_tokens_are_counted_once_in_spite_of_preemption() -> None:
    parts = parts_over(FakeBackend(CONFIG), kv_cache_tokens=64, max_batched_tokens=5)
    for name in ("a", "b", "c"):
        start(parts, name, prompt=[int(name, 16)] * 12, max_tokens=30, ignore_eos=True)
    results = steps_to_end(parts.core)
    assert total(results, "num_preemptions") > 0
    assert total(results, "num_prompt_tokens") == 36


def test_a_choice_preempted_while_reading_counts_its_prompt_once() -> None:
    parts = parts_over(FakeBackend(CONFIG), kv_cache_tokens=64, max_batched_tokens=1)
    start(parts, "old", prompt=[1], max_tokens=40, ignore_eos=True)
    parts.core.step()
    start(parts, "new", prompt=[2] * 50, max_tokens=1)
    results = steps_to_end(parts.core)
    assert total(results, "num_preemptions") > 0
    assert total(results, "num_prompt_tokens") == 50


def test_a_prompt_is_counted_once_however_many_choices_it_has() -> None:
    parts = parts_over(FakeBackend(CONFIG))
    start(parts, n=3, max_tokens=4, ignore_eos=True)
    results = steps_to_end(parts.core)
    assert total(results, "num_prompt_tokens") == len(PROMPT)


def test_every_eviction_is_counted() -> None:
    parts = parts_over(FakeBackend(CONFIG), kv_cache_tokens=64)
    for name in ("a", "b", "c"):
        start(parts, name, prompt=[int(name, 16)] * 12, max_tokens=30, ignore_eos=True)
    parts.core.step()
    requests = list(parts.core.scheduler.requests())
    results = steps_to_end(parts.core)
    evictions = sum(request.num_evictions for request in requests)
    assert total(results, "num_preemptions") == evictions > 0


def test_draft_lengths_are_those_chosen_also_where_nothing_is_drafted() -> None:
    """Of choices that may be drafted for: neither while they read, nor before their last token."""
    parts = parts_over(scripted(script_of(1, 2, 3, 4, 5, 6, 7)))
    start(parts, max_tokens=7, ignore_eos=True, speculative=drafting(2))
    start(parts, "plain", max_tokens=7, ignore_eos=True)
    lengths = [result.stats.draft_lengths for result in steps_to_end(parts.core)]
    assert [length for length in lengths if length] == [[2], [2]]
    # Without a repetition there is nothing to draft from.
    unsure = DraftMethod.NGRAM
    parts = parts_over(scripted(script_of(11, 12, 13, 14)))
    start(parts, max_tokens=4, speculative=SpeculativeParams(method=unsure, num_speculations=2))
    lengths = [result.stats.draft_lengths for result in steps_to_end(parts.core)]
    assert lengths == [[], [0], [0], []]


def test_prefix_queries_and_hits() -> None:
    parts = parts_over(FakeBackend(CONFIG), max_batched_tokens=64)
    first, second = StepStats(), StepStats()
    for stats in (first, second):
        start(parts, prompt=list(range(10)), max_tokens=2, ignore_eos=True)
        for result in steps_to_end(parts.core):
            stats.num_prefix_queries += result.stats.num_prefix_queries
            stats.num_prefix_hits += result.stats.num_prefix_hits
    assert (first.num_prefix_queries, first.num_prefix_hits) == (9, 0)
    assert (second.num_prefix_queries, second.num_prefix_hits) == (9, 8)


@pytest.mark.parametrize(("caching", "scored"), [(False, None), (True, 0)])
def test_what_bypasses_the_prefix_cache_asks_it_nothing(caching: bool, scored: int | None) -> None:
    parts = parts_over(FakeBackend(CONFIG), enable_prefix_caching=caching)
    for _ in range(2):
        start(parts, max_tokens=2, prompt_logprobs=scored, ignore_eos=True)
        results = steps_to_end(parts.core)
        assert total(results, "num_prefix_queries") == total(results, "num_prefix_hits") == 0


def test_a_prompt_answered_with_one_token_is_cached_too() -> None:
    parts = parts_over(scripted(script_of(10)))
    start(parts, max_tokens=1)
    run_to_end(parts.core)
    start(parts, "again", max_tokens=1)
    ledger = run_to_end(parts.core)
    metrics = ledger.last("again").metrics
    assert metrics is not None and metrics.num_cached_tokens == 4


def test_times_and_intervals() -> None:
    clock = Clock(now_s=10.0)
    parts = parts_over(scripted(script_of(10, 11, 12, 13)), clock, max_batched_tokens=3)
    start(parts, max_tokens=5, speculative=drafting(2))
    results: list[StepResult] = []
    for now_s in (11.0, 12.0, 15.0, 19.0):
        clock.now_s = now_s
        results.append(parts.core.step())
    assert not parts.core.has_work
    # Two chunks of prompt, the second with a token; three tokens; the last one.
    assert [len(o.tokens) for r in results for o in r.outputs] == [1, 3, 1]
    intervals = [i for r in results for i in r.stats.intervals]
    assert [(i.interval_s, i.num_tokens, i.speculative) for i in intervals] == [
        (3.0, 3, True),
        (4.0, 1, False),
    ]
    metrics = results[-1].outputs[0].metrics
    assert metrics is not None
    assert (metrics.queue_time_s, metrics.time_to_first_token_s) == (1.0, 2.0)
    assert (metrics.generation_time_s, metrics.mean_itl_s) == (9.0, 7.0 / 4)
    (finished,) = results[-1].stats.finished
    assert (finished.queue_s, finished.prefill_s, finished.decode_s) == (1.0, 1.0, 7.0)
    assert (finished.e2e_s, finished.speculative) == (9.0, True)
    assert (finished.num_prompt_tokens, finished.num_generated_tokens) == (5, 5)


def test_gauges_hold_the_state_after_the_step() -> None:
    parts = parts_over(scripted(script_of(10)), max_num_seqs=1, kv_cache_tokens=80)
    start(parts, "a", max_tokens=2)
    start(parts, "b", max_tokens=2)
    stats = [result.stats for result in steps_to_end(parts.core)]
    assert [(s.num_running, s.num_waiting) for s in stats] == [(1, 1), (0, 1), (1, 0), (0, 0)]
    assert [round(s.kv_usage_ratio * 20) for s in stats] == [2, 0, 2, 0]
    assert sum(len(s.finished) for s in stats) == 2


def test_exits_are_counted_apart() -> None:
    parts = parts_over(FakeBackend(CONFIG))
    start(parts, "deep", max_tokens=3, ignore_eos=True)
    start(parts, "shallow", max_tokens=4, exit_layer=2, ignore_eos=True)
    assert all_generated(steps_to_end(parts.core)) == {(4, PLAIN): 3, (2, PLAIN): 4}


def left(result: StepResult) -> Counter[str]:
    return Counter(result.stats.left_queue)


def test_who_waits_no_more_is_told_once() -> None:
    parts = parts_over(scripted(script_of(*[1] * 20)), max_num_seqs=2)
    for name, fields in (("a", {"n": 2}), ("b", {}), ("c", {"max_tokens": 0})):
        start(parts, name, **{"max_tokens": 3, **fields})
    steps = [parts.core.step()]
    # The second choice of "a" follows its first; "c" had nothing to wait for.
    assert left(steps[0]) == {"a": 1, "b": 1, "c": 1}
    while parts.core.has_work:
        steps.append(parts.core.step())
    assert sum(map(left, steps), Counter()) == {"a": 2, "b": 1, "c": 1}


@pytest.mark.parametrize("how", ["abort", "fail"])
def test_who_is_ended_while_waiting_waits_no_more(how: str) -> None:
    parts = parts_over(scripted(script_of(*[1] * 20)), max_num_seqs=1)
    for name in ("runs", "waits"):
        start(parts, name, max_tokens=8)
    assert left(parts.core.step()) == {"runs": 1}
    if how == "abort":
        parts.core.abort("waits")
        parts.core.abort("runs")
    else:
        parts.core.fail_all("over", "shutting_down")
    assert left(parts.core.step()) == {"waits": 1}


def test_a_preempted_choice_has_left_the_queue_already() -> None:
    """Two that fill the blocks, one of which must make room and come again."""
    parts = parts_over(scripted(script_of(*[1] * 60)), kv_cache_tokens=64, max_num_seqs=2)
    for name in ("a", "b"):
        start(parts, name, max_tokens=50)
    steps = steps_to_end(parts.core)
    assert sum(step.stats.num_preemptions for step in steps) > 0
    assert sum(map(left, steps), Counter()) == {"a": 1, "b": 1}

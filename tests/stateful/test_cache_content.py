"""After every step of random histories, the cache holds what reading afresh would give."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from engine.cache.manager import KVCacheManager
from engine.cache.prefix import PrefixMatch
from engine.request import Request
from engine.scheduler.scheduler import Scheduler
from support.backend_variants import REFERENCE, Precision, each_precision
from support.cache_checks import (
    StateChecker,
    assert_blocks_accounted,
    assert_indexed_content,
    assert_running_content,
)
from support.engine_parts import make_parts
from support.fake_backend import FakeBackend, fake_config
from support.histories import History
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.probes import FakeProbe, Probe, make_probe

CONFIG = fake_config(vocab_size=48, num_layers=6, max_position_embeddings=64, eos_token_ids=(30,))
EVENTS = {
    "preempted",
    "prefix hit",
    "draft rejected",
    "draft accepted",
    "n-gram rejected",
    "n-gram accepted",
    "aborted while waiting",
    "aborted while waiting for its leader",
    "aborted while prefilling",
    "aborted while decoding",
}


def fake_probe(check_reads: bool = True) -> FakeProbe:
    options: dict[str, Any] = {"agreement": 0.75, "context_tokens": 1, "check_reads": check_reads}
    return FakeProbe(FakeBackend(CONFIG, **options), FakeBackend(CONFIG, **options))


def run_history(
    seed: int, probe: Probe, num_requests: int, after_step: Callable[[History], None]
) -> tuple[History, int]:
    """A history to its end in a pool of little more than one context; and the states checked."""
    rng = random.Random(seed)
    checker = StateChecker(probe)
    size = rng.choice((2, 4, 5))
    parts = make_parts(
        checker,
        block_size=size,
        max_model_len=56,
        kv_cache_tokens=rng.choice((56, 70, 110)),
        max_num_seqs=rng.choice((2, 4, 8)),
        max_batched_tokens=rng.choice((3, 16, 64)),
        draft_exit_layer=2,
        ngram_min=1,
        enable_prefix_caching=rng.random() < 0.9,
    )
    checker.core = parts.core
    history = History(parts, rng, num_requests)
    for _ in range(3000):
        if history.step() is None:
            break
        assert_blocks_accounted(parts.core)
        assert_running_content(parts.core, probe)
        after_step(history)
    history.assert_all_ended()
    assert parts.core.cache.usage_ratio == 0.0
    return history, checker.num_checked


def check_index(history: History) -> None:
    probe = history.parts.backend.probe  # pyright: ignore[reportAttributeAccessIssue]
    assert_indexed_content(history.parts.core, probe)


def test_fake_backend_histories() -> None:
    events: Counter[str] = Counter()
    num_states = 0
    for seed in range(14):
        history, num_checked = run_history(seed, fake_probe(), 20, check_index)
        events += history.events
        num_states += num_checked
    assert {name for name in EVENTS if events[name] < 3} == set(), events
    assert num_states > 500


PRECISIONS = (REFERENCE[0], Precision("cpu", "int8", "fp16"), Precision("cpu", "int8", "int8"))


@each_precision(*PRECISIONS)
def test_real_backend_histories(precision: Precision) -> None:
    """The native cache is filled by many threads, and checked against the plain code's."""
    config = tiny_config(num_layers=4, max_position_embeddings=64)
    checkpoint = MemoryCheckpoint(config, agreement_after=1, damping=0.3)
    events: Counter[str] = Counter()
    num_states = 0
    seeds = (1, 3, 6) if precision.backend == "reference" else range(6)
    for seed in seeds:
        backend = precision.make(checkpoint, threads=1 + seed % 4, draft_vocab_size=64)
        probe = make_probe(backend, precision.make(checkpoint, isa="scalar"))
        history, num_checked = run_history(seed, probe, 8, check_index)
        events += history.events
        num_states += num_checked
    wanted = {"preempted", "prefix hit", "draft rejected", "draft accepted"}
    assert {name for name in wanted if not events[name]} == set(), events
    assert num_states > 20


# --- ways to be wrong that the checks must notice --------------------------------------------


def keeps_counters(request: Request) -> None:
    request.num_full = request.num_shallow = min(request.num_full, request.num_known)
    request.drafts = []


def keeps_draft_blocks(scheduler: Scheduler, request: Request) -> None:
    cache, state = scheduler._cache, request.commit_state
    assert state is not None
    cache.commit(request.blocks, request.tokens, request.num_full, request.exit_layer, state)


def indexes_early(scheduler: Scheduler, request: Request) -> None:
    """Takes the last known token's K/V for granted."""
    cache, state = scheduler._cache, request.commit_state
    assert state is not None
    cache.commit(request.blocks, request.tokens, request.num_known, request.exit_layer, state)
    cache.trim(request.blocks, request.num_known)


def keeps_blocks_of_the_evicted(scheduler: Scheduler, request: Request) -> None:
    scheduler._free_slots.append(request.slot or 0)


def keeps_the_slot(scheduler: Scheduler, request: Request) -> None:
    scheduler._cache.free(request.blocks)


def shares_states(request: Request, position: int) -> int:
    """All running choices save into the first one's slots."""
    return position - request.num_full


def ignores_depth(
    cache: KVCacheManager, tokens: list[int], exit_layer: int, max_tokens: int
) -> PrefixMatch:
    return cache._index.match(tokens, 1, max_tokens)


def matches_half_blocks(
    cache: KVCacheManager, tokens: list[int], exit_layer: int, max_tokens: int
) -> PrefixMatch:
    """Compares one token less than a block holds."""
    size, probes = cache.block_size, tokens[:max_tokens]
    for entry in cache._index._by_block.values():
        if entry.parent is None and entry.depth >= exit_layer and len(probes) >= size:
            same = list(entry.tokens[: size - 1]) == probes[: size - 1]
            if same:
                return PrefixMatch((entry.block,), size, len(probes), (entry,))
    return PrefixMatch(num_queried=len(probes))


MUTANTS: dict[str, tuple[type[Any], str, Callable[..., Any]]] = {
    "keeps counters": (Request, "end_round", keeps_counters),
    "keeps draft blocks": (Scheduler, "settle", keeps_draft_blocks),
    "indexes early": (Scheduler, "settle", indexes_early),
    "leaks blocks": (Scheduler, "_give_back", keeps_blocks_of_the_evicted),
    "leaks slots": (Scheduler, "_give_back", keeps_the_slot),
    "shares states": (Request, "exit_state", shares_states),
    "ignores depth": (KVCacheManager, "match", ignores_depth),
    "matches half blocks": (KVCacheManager, "match", matches_half_blocks),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_engine_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mutant breaks one rule; if no history minds, they prove nothing."""
    owner, method, mutant = MUTANTS[name]
    monkeypatch.setattr(owner, method, mutant)
    with pytest.raises(AssertionError):
        for seed in range(8):
            run_history(seed, fake_probe(check_reads=False), 20, check_index)


def test_a_single_wrong_cell_is_noticed() -> None:
    """In any layer below the exit, at any position that counts."""
    rng = random.Random(5)

    def corrupt(history: History) -> None:
        for request in history.parts.core.scheduler.requests():
            if request.num_full > 2:
                probe.backend.cells[
                    rng.randrange(request.exit_layer),
                    request.blocks[0] * history.parts.core.cache.block_size,
                ] ^= 1
                with pytest.raises(AssertionError):
                    assert_running_content(history.parts.core, probe)
                raise StopIteration

    probe = fake_probe()
    with pytest.raises(StopIteration):
        run_history(0, probe, 5, corrupt)

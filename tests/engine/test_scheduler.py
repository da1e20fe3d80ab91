"""The real scheduler, driven by rounds that are made up on the spot: no backend at all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

from engine.cache.manager import KVCacheManager
from engine.config import EngineConfig
from engine.detokenizer import Detokenizer
from engine.request import Request
from engine.sampling.sampler import SamplingState
from engine.scheduler.plan import RoundPlan, Work
from engine.scheduler.scheduler import Scheduler
from engine.speculative.drafting import DraftPolicy
from engine.types import FinishReason, SamplingParams
from support.engine_parts import CharTokenizer
from support.fake_backend import fake_config

BLOCK_SIZE = 4
TOKENIZER = CharTokenizer(64)


class Bench:
    """A scheduler, its cache, and rounds in which every choice that is due gets one token."""

    def __init__(self, num_blocks: int = 16, **config: Any) -> None:
        options = {"max_model_len": min(64, num_blocks * BLOCK_SIZE), "block_size": BLOCK_SIZE}
        options["kv_cache_tokens"] = num_blocks * BLOCK_SIZE
        self.config = EngineConfig(**{**options, **config}).resolve(fake_config())
        self.cache = KVCacheManager(num_blocks, BLOCK_SIZE)
        self.scheduler = Scheduler(self.config, self.cache)
        self._tokens = itertools.count(10_000)

    def new_tokens(self, count: int) -> list[int]:
        """Tokens that no other prompt has."""
        return list(itertools.islice(self._tokens, count))

    def add(self, prompt: int | Sequence[int], num_drafts: int = 0, **options: Any) -> Request:
        """A choice with a prompt of its own of so many tokens, or with the tokens given."""
        if isinstance(prompt, int):
            prompt = self.new_tokens(prompt)
        params = SamplingParams(
            prompt_logprobs=options.pop("prompt_logprobs", None),
            priority=options.pop("priority", 0),
        )
        fields: dict[str, Any] = {
            "request_id": "r",
            "index": 0,
            "exit_layer": 6,
            "max_tokens": 20,
            "eos_token_ids": (),
            "ngrams": None,
            "arrival_s": 0.0,
            "policy": DraftPolicy(num_drafts, 2),
        }
        request = Request(
            prompt_token_ids=prompt,
            params=params,
            sampling=SamplingState(params, prompt, (), 1),
            detokenizer=Detokenizer(TOKENIZER),
            **{**fields, **options},
        )
        self.scheduler.add(request)
        return request

    def plan(self) -> RoundPlan:
        plan = self.scheduler.plan(0.0)
        self.cache.check_integrity()
        return plan

    def finish_round(self, plan: RoundPlan, num_accepted: int = 0) -> None:
        """Results by hand: rows are computed, so many drafts accepted, one more token given."""
        for work in plan.work:
            request = work.request
            for _ in range(work.num_drafts):
                request.mark_shallow(2)
                request.add_draft(1)
            request.mark_full(work.num_rows + work.num_drafts)
            if work.reaches_end:
                for _ in range(min(num_accepted, work.num_drafts) + 1):
                    request.deliver(1)
            request.end_round()
        for request in list(self.scheduler.requests()):
            if request.slot is not None:
                self.scheduler.settle(request)
                if request.num_generated >= request.max_tokens:
                    self.end(request)

    def round(self, num_accepted: int = 0) -> RoundPlan:
        plan = self.plan()
        self.finish_round(plan, num_accepted)
        return plan

    def end(self, request: Request) -> None:
        request.finish(FinishReason.LENGTH)
        self.scheduler.remove(request)


def parts_of(plan: RoundPlan) -> list[tuple[Request, int, int]]:
    return [(work.request, work.num_rows, work.num_drafts) for work in plan.work]


# --- admission -------------------------------------------------------------------------------


def test_first_come_first_served() -> None:
    bench = Bench()
    requests = [bench.add(3) for _ in range(4)]
    assert bench.plan().admitted == requests


def test_a_choice_that_does_not_fit_is_not_overtaken() -> None:
    bench = Bench(num_blocks=8)
    bench.add(16)
    large, small = bench.add(16), bench.add(1)
    plan = bench.round()
    assert large not in plan.admitted and small not in plan.admitted
    assert list(bench.scheduler.requests())[1:] == [large, small]


def test_slots_limit_the_running_choices() -> None:
    bench = Bench(max_num_seqs=2)
    first, _, third = (bench.add(2) for _ in range(3))
    bench.round()
    assert (bench.scheduler.num_running, bench.scheduler.num_waiting) == (2, 1)
    bench.end(first)
    assert bench.plan().admitted == [third]


def test_running_choices_have_slots_of_their_own() -> None:
    bench = Bench(max_num_seqs=3)
    requests = [bench.add(2) for _ in range(3)]
    bench.round()
    assert {request.slot for request in requests} == {0, 1, 2}


def test_a_block_is_spared_for_each_running_choice() -> None:
    bench = Bench(num_blocks=9)
    bench.add(9)
    bench.add(9)
    assert len(bench.round().admitted) == 2
    waiting = bench.add(3)
    assert bench.cache.num_free == 3
    # One block for itself and two to spare: just enough.
    assert bench.plan().admitted == [waiting]


def test_the_spare_blocks_are_not_given_away() -> None:
    bench = Bench(num_blocks=8)
    bench.add(9)
    bench.add(9)
    bench.round()
    bench.add(3)
    assert bench.cache.num_free == 2
    assert bench.plan().admitted == []


def test_a_lone_choice_needs_no_spare_block() -> None:
    bench = Bench(num_blocks=2)
    request = bench.add(7, max_tokens=1)
    assert bench.plan().admitted == [request]


def test_siblings_wait_for_the_leader_and_let_others_pass() -> None:
    bench = Bench(max_batched_tokens=4)
    prompt = bench.new_tokens(10)
    leader = bench.add(prompt)
    siblings = [bench.add(prompt, index=i, leader=leader) for i in (1, 2)]
    other = bench.add(2)
    assert bench.round().admitted == [leader, other]
    assert bench.round().admitted == []
    bench.round()
    assert leader.num_generated == 1
    plan = bench.plan()
    assert plan.admitted == siblings
    # They find the prompt's full blocks, and read the rest.
    assert [request.num_full for request in siblings] == [8, 8]
    assert siblings[0].blocks[:2] == siblings[1].blocks[:2] == leader.blocks[:2]


def test_siblings_do_not_wait_for_a_leader_that_has_ended() -> None:
    bench = Bench()
    leader = bench.add(6)
    sibling = bench.add(6, index=1, leader=leader)
    bench.end(leader)
    assert bench.plan().admitted == [sibling]


def test_an_admitted_choice_starts_behind_its_cached_prefix() -> None:
    bench = Bench()
    prompt = bench.new_tokens(9)
    bench.add(prompt)
    bench.round()
    second, shallow, scored = (
        bench.add(prompt),
        bench.add(prompt, exit_layer=3),
        bench.add(prompt, prompt_logprobs=0),
    )
    bench.plan()
    assert [r.num_full for r in (second, shallow, scored)] == [8, 8, 0]


def test_all_but_the_last_token_can_be_cached() -> None:
    bench = Bench()
    prompt = bench.new_tokens(8)
    bench.add(prompt)
    bench.round()
    assert bench.cache.num_indexed == 2
    again = bench.add(prompt)
    bench.plan()
    assert again.num_full == 4


# --- drafts and preemption -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_tokens", "prompt", "expected"), [(20, 4, 5), (5, 4, 3), (2, 4, 0), (20, 59, 3)]
)
def test_drafts_stay_within_what_can_be_delivered(
    max_tokens: int, prompt: int, expected: int
) -> None:
    """After the prompt's own token, one token of what is left is verification's."""
    bench = Bench(num_blocks=20, max_model_len=64)
    request = bench.add(prompt, num_drafts=5, max_tokens=max_tokens)
    bench.round()
    assert parts_of(bench.plan()) == [(request, 1, expected)]


def test_a_prompt_drafts_from_the_round_after() -> None:
    bench = Bench()
    request = bench.add(5, num_drafts=3)
    assert parts_of(bench.round()) == [(request, 5, 0)]
    assert parts_of(bench.round(num_accepted=1)) == [(request, 1, 3)]
    assert (request.num_known, request.num_full) == (8, 7)


def test_drafts_shrink_before_anyone_is_preempted() -> None:
    bench = Bench(num_blocks=4, max_model_len=16)
    first, second = bench.add(6, num_drafts=9), bench.add(3, num_drafts=9)
    bench.round()
    assert [len(r.blocks) for r in (first, second)] == [2, 1]
    plan = bench.plan()
    # Seven and four known. The second's next position takes the last free block, before any
    # draft is given room: the first's would need a block more, the second's fit into that one.
    assert plan.num_preempted == 0
    assert parts_of(plan) == [(first, 1, 0), (second, 1, 3)]
    bench.finish_round(plan)


def test_unused_draft_blocks_are_given_back() -> None:
    bench = Bench(num_blocks=8)
    request = bench.add(3, num_drafts=12)
    bench.round()
    plan = bench.plan()
    assert len(request.blocks) == 5
    bench.finish_round(plan, num_accepted=0)
    assert (request.num_known, len(request.blocks)) == (5, 2)


def test_the_latest_arrival_is_preempted_first() -> None:
    bench = Bench(num_blocks=6, max_model_len=24)
    first, second, third = bench.add(3), bench.add(3), bench.add(3)
    plan = bench.round()
    while not plan.num_preempted:
        plan = bench.round()
    assert plan.num_preempted == 1
    preempted = [request for request in (first, second, third) if request.slot is None]
    assert preempted == [third]
    assert (third.blocks, third.num_full, third.num_shallow) == ([], 0, 0)
    assert third.num_generated > 0


def test_nobody_is_admitted_in_a_round_that_preempts() -> None:
    bench = Bench(num_blocks=6, max_model_len=24)
    for _ in range(3):
        bench.add(3)
    bench.round()
    late = bench.add(1)
    plans = [bench.round()]
    while not plans[-1].num_preempted:
        plans.append(bench.round())
    assert plans[-1].admitted == []
    assert list(bench.scheduler.requests())[-1] is late


def test_the_preempted_come_back_in_their_old_order() -> None:
    bench = Bench(num_blocks=8, max_model_len=32)
    requests = [bench.add(7, max_tokens=25) for _ in range(4)]
    while bench.scheduler.num_running > 2:
        bench.round()
    assert list(bench.scheduler.requests()) == requests
    waiting = requests[2:]
    bench.end(requests[0])
    bench.end(requests[1])
    assert bench.plan().admitted == waiting


# --- priority --------------------------------------------------------------------------------


def test_lower_priorities_are_admitted_first_then_earlier_arrivals() -> None:
    bench = Bench(max_num_seqs=1)
    low, high, middle, high_too = (bench.add(2, priority=p) for p in (5, -3, 0, -3))
    admitted = []
    for _ in range(4):
        (request,) = bench.plan().admitted
        admitted.append(request)
        bench.end(request)
    assert admitted == [high, high_too, middle, low]


def test_an_urgent_choice_that_does_not_fit_is_not_overtaken() -> None:
    bench = Bench(num_blocks=8)
    bench.add(16)
    bench.round()
    small, large = bench.add(1), bench.add(16, priority=-1)
    assert bench.round().admitted == []
    assert list(bench.scheduler.requests())[1:] == [large, small]


def test_the_least_urgent_is_preempted_first_however_early_it_came() -> None:
    bench = Bench(num_blocks=6, max_model_len=24)
    first, second, third = (bench.add(3, priority=p) for p in (1, 0, -1))
    plan = bench.round()
    while not plan.num_preempted:
        plan = bench.round()
    assert [request for request in (first, second, third) if request.slot is None] == [first]
    late = bench.add(1)
    assert list(bench.scheduler.requests()) == [third, second, late, first]


def test_an_urgent_prompt_is_read_first() -> None:
    bench = Bench(max_batched_tokens=8)
    bench.add(6)
    urgent = bench.add(6, priority=-1)
    assert [(work.request is urgent, work.num_rows) for work in bench.round().work] == [
        (True, 6),
        (False, 2),
    ]


# --- prompt rows -----------------------------------------------------------------------------


def test_prompts_are_read_in_chunks() -> None:
    bench = Bench(max_batched_tokens=4)
    request = bench.add(10)
    rows = [work.num_rows for _ in range(4) for work in bench.round().work]
    assert rows == [4, 4, 2, 1]
    assert request.num_generated == 2


def test_a_sweep_is_shared_in_order_of_arrival() -> None:
    bench = Bench(max_batched_tokens=8)
    first, second, third = bench.add(5), bench.add(5), bench.add(5)
    assert parts_of(bench.round()) == [(first, 5, 0), (second, 3, 0)]
    # While somebody decodes, and before anything is measured, one block is read.
    assert parts_of(bench.round()) == [(first, 1, 0), (second, 2, 0), (third, 2, 0)]


def test_decoding_choices_are_served_beside_any_prompt() -> None:
    bench = Bench(max_batched_tokens=4)
    decoding = [bench.add(1) for _ in range(4)]
    bench.round()
    bench.add(20)
    for _ in range(4):
        plan = bench.round()
        assert [work.request for work in plan.work[:4]] == decoding
        assert [work.num_rows for work in plan.work] == [1, 1, 1, 1, 4]


def test_a_deep_prompt_counts_by_its_layers() -> None:
    bench = Bench(num_blocks=40, max_batched_tokens=100, prefill_budget_s=0.6)
    bench.add(1)
    bench.round()
    bench.scheduler.budget.observe(10, 0.1)
    deep = bench.add(30)
    assert parts_of(bench.round())[1] == (deep, 10, 0)


def test_a_scored_prompt_as_long_as_the_context_is_admitted() -> None:
    """It gets no token, so it needs no position beyond the context that the pool holds."""
    bench = Bench(num_blocks=4, max_model_len=16)
    request = bench.add(16, max_tokens=0, prompt_logprobs=0)
    assert bench.plan().admitted == [request]


# --- work ------------------------------------------------------------------------------------


def test_work_keeps_what_it_was_when_planned() -> None:
    bench = Bench()
    request = bench.add(5)
    bench.plan()
    whole, part = Work(request, 5), Work(request, 2)
    request.mark_full(5)
    assert (whole.is_prefill, whole.reaches_end) == (True, True)
    assert (part.is_prefill, part.reaches_end) == (True, False)


@pytest.mark.parametrize("seed", range(6))
def test_nobody_starves(seed: int) -> None:
    """Under a stream of arrivals in a tiny pool, all that came early have ended in time."""
    rng = random.Random(seed)
    bench = Bench(num_blocks=10, max_model_len=32, max_num_seqs=4, max_batched_tokens=6)
    early = [bench.add(rng.randint(1, 20), rng.randrange(4), max_tokens=9) for _ in range(12)]
    num_rounds = 0
    while any(request.finish_reason is None for request in early):
        if rng.random() < 0.5:
            bench.add(rng.randint(1, 20), rng.randrange(4), max_tokens=9)
        plan = bench.round(num_accepted=rng.randrange(3))
        assert plan.work, "a round without work"
        # The first of the line advances in every round: it is never preempted.
        num_rounds += 1
        assert num_rounds < 400

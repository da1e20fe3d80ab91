"""Continuous batching without phases: every running choice chases its own known tokens.

A round serves all decoding choices, then as many prompt rows as fit the budget. Blocks are
reserved before the round: first one more position for everybody, preempting from the end of the
order when blocks run out, and only then room for drafts, which shrink instead. The order is by
priority, lower values first, and by arrival among equals.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Iterator

from engine.cache.manager import KVCacheManager
from engine.config import EngineConfig
from engine.request import Request, RequestStatus
from engine.scheduler.budget import PrefillBudget
from engine.scheduler.plan import RoundPlan, Work


def _place(request: Request) -> tuple[int, int]:
    return request.place


class Scheduler:
    """Decides who runs and how far; owns the waiting line, the running set and their blocks."""

    def __init__(self, config: EngineConfig, cache: KVCacheManager) -> None:
        assert config.max_model_len is not None, "resolve() first"
        self._max_model_len = config.max_model_len
        self._cache = cache
        # Both in the order of service.
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._arrivals = itertools.count()
        self._free_slots = list(reversed(range(config.max_num_seqs)))
        self.budget = PrefillBudget(
            config.prefill_budget_s, config.max_batched_tokens, config.block_size
        )

    @property
    def num_waiting(self) -> int:
        """Choices in the waiting line."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Choices that hold blocks."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether a round would have anything to do."""
        return bool(self._waiting or self._running)

    def requests(self) -> Iterator[Request]:
        """Every choice that has not ended: running ones first."""
        yield from self._running
        yield from self._waiting

    def add(self, request: Request) -> None:
        """Put a new choice in the line, behind those of its priority."""
        request.arrive(next(self._arrivals))
        insort(self._waiting, request, key=_place)

    def remove(self, request: Request) -> None:
        """Take out a choice that has ended, and free what it holds."""
        if request.status is RequestStatus.WAITING:
            self._waiting.remove(request)
        else:
            self._running.remove(request)
            self._give_back(request)
        request.release()

    def plan(self, now_s: float) -> RoundPlan:
        """Reserve blocks and divide the next round; admits and preempts as needed."""
        plan = RoundPlan()
        for request in self._running:
            request.begin_round()
        self._reserve_next_positions(plan)
        if not plan.num_preempted:
            self._admit(plan, now_s)
        decoding = [request for request in self._running if request.num_pending == 1]
        plan.work = [Work(request, 1, self._reserve_drafts(request)) for request in decoding]
        self._add_prefill(plan, anyone_decodes=bool(decoding))
        return plan

    def settle(self, request: Request) -> None:
        """After a round: index the blocks that it completed, give back what it did not need."""
        assert request.commit_state is not None
        self._cache.commit(
            request.blocks,
            request.tokens,
            request.num_full,
            request.exit_layer,
            request.commit_state,
        )
        self._cache.trim(request.blocks, request.num_known)

    # --- reservation -------------------------------------------------------------------------

    def _reserve_next_positions(self, plan: RoundPlan) -> None:
        index = 0
        while index < len(self._running):
            request = self._running[index]
            while not self._cache.grow(request.blocks, self._num_reserved(request)):
                victim = self._running.pop()
                self._preempt(victim)
                plan.num_preempted += 1
                if victim is request:
                    break
            else:
                index += 1

    def _num_reserved(self, request: Request) -> int:
        """One position more than are known; a prompt as long as the context gets none."""
        return min(request.num_known + 1, self._max_model_len)

    def _reserve_drafts(self, request: Request) -> int:
        policy = request.policy
        num_drafts = min(policy.num_speculations, request.max_drafts(self._max_model_len))
        while num_drafts and not self._cache.grow(
            request.blocks, request.num_known + 1 + num_drafts
        ):
            num_drafts -= 1
        return num_drafts

    def _preempt(self, request: Request) -> None:
        self._give_back(request)
        request.evict()
        insort(self._waiting, request, key=_place)

    def _give_back(self, request: Request) -> None:
        self._cache.free(request.blocks)
        assert request.slot is not None
        self._free_slots.append(request.slot)

    # --- admission ---------------------------------------------------------------------------

    def _admit(self, plan: RoundPlan, now_s: float) -> None:
        """Admit from the line in order; a choice that waits for its leader lets others pass."""
        for request in list(self._waiting):
            if not self._free_slots:
                break
            if self._must_wait_for_leader(request):
                continue
            if not self._try_admit(request, now_s):
                break
            self._waiting.remove(request)
            plan.admitted.append(request)

    def _must_wait_for_leader(self, request: Request) -> bool:
        leader = request.leader
        if leader is None or leader.status is RequestStatus.FINISHED:
            return False
        return leader.num_full < request.num_prompt - 1 and leader.num_generated == 0

    def _try_admit(self, request: Request, now_s: float) -> bool:
        max_cached = 0 if request.wants_prompt_logprobs else request.num_known - 1
        match = self._cache.match(request.tokens, request.exit_layer, max_cached)
        num_reserved = self._num_reserved(request)
        num_new = self._cache.num_blocks_for(num_reserved) - len(match.blocks)
        # One spare block for each running choice: admitting into the last blocks would only
        # have somebody preempted in the next round.
        if self._running and self._cache.num_free - num_new < len(self._running):
            return False
        blocks = self._cache.admit(match, num_reserved)
        if blocks is None:
            return False
        slot = self._free_slots.pop()
        request.admit(blocks, self._cache.commit_state(match), match.num_tokens, slot, now_s)
        insort(self._running, request, key=_place)
        return True

    # --- prompt rows -------------------------------------------------------------------------

    def _add_prefill(self, plan: RoundPlan, anyone_decodes: bool) -> None:
        reading = [request for request in self._running if request.num_pending > 1]
        if not reading:
            return
        deepest = max(request.exit_layer for request in reading)
        rows_left = self.budget.num_rows(deepest, anyone_decodes)
        for request in reading:
            num_rows = min(request.num_pending, rows_left)
            if num_rows < 1:
                break
            plan.work.append(Work(request, num_rows))
            rows_left -= num_rows

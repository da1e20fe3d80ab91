"""The synchronous engine: add, abort, step. Applies what a round brings, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from engine.backends.protocol import Backend
from engine.cache.manager import KVCacheManager
from engine.config import EngineConfig
from engine.metrics import DraftStats, FinishedStats, IntervalStats, PassStats, StepStats
from engine.request import Request
from engine.rounds import RoundRunner, Verdict
from engine.scheduler.plan import RoundPlan, Work
from engine.scheduler.scheduler import Scheduler
from engine.types import ChoiceMetrics, ChoiceOutput, FinishReason, TokenOutput, TokenSource


@dataclass(slots=True)
class StepResult:
    """One step's outputs, at most one per choice, and what was counted."""

    outputs: list[ChoiceOutput] = field(default_factory=list)
    stats: StepStats = field(default_factory=StepStats)


class Core:
    """Runs rounds over a backend. Not thread-safe: one thread owns it.

    `config` must be resolved; the backend gets its K/V blocks and exit states here.
    """

    def __init__(self, backend: Backend, config: EngineConfig, clock: Callable[[], float]) -> None:
        backend.allocate(config.num_blocks, config.block_size, config.num_exit_states)
        self._clock = clock
        self.cache = KVCacheManager(
            config.num_blocks, config.block_size, config.enable_prefix_caching
        )
        self.scheduler = Scheduler(config, self.cache)
        self.rounds = RoundRunner(backend, clock)
        self._ended = StepResult()
        """Ends that happened between steps, to be reported with the next one."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would bring anything."""
        return self.scheduler.has_work or bool(self._ended.outputs)

    def add(self, requests: Iterable[Request]) -> None:
        """Take the choices of a prompt."""
        for request in requests:
            if request.max_tokens == 0 and not request.wants_prompt_logprobs:
                request.finish(FinishReason.LENGTH)
                self._ended.outputs.append(self._output(request, self._ended.stats))
                request.release()
            else:
                self.scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """End every choice of a request now; unknown ids are ignored (it may just have ended)."""
        self._end_all(FinishReason.ABORT, lambda request: request.request_id == request_id)

    def fail_all(self, message: str, code: str) -> None:
        """End every choice with an error."""
        self._end_all(FinishReason.ERROR, lambda _: True, message, code)

    def step(self) -> StepResult:
        """Run one round and apply it."""
        result, self._ended = self._ended, StepResult()
        queries, hits = self.cache.num_queried_tokens, self.cache.num_hit_tokens
        plan = self.scheduler.plan(self._clock())
        self._count_plan(plan, result.stats)
        result.stats.num_prefix_queries = self.cache.num_queried_tokens - queries
        result.stats.num_prefix_hits = self.cache.num_hit_tokens - hits
        if plan.work:
            verdicts, passes = self.rounds.run(plan.work)
            self._learn(plan.work, passes[-1])
            result.stats.passes = passes
            for verdict in verdicts:
                self._apply(verdict, result)
        for request in list(self.scheduler.requests()):
            if request.slot is not None:
                # Those that have ended too: their last blocks may serve others.
                self.scheduler.settle(request)
            if request.finish_reason is not None:
                self.scheduler.remove(request)
        self._count_gauges(result.stats)
        return result

    # --- applying a round --------------------------------------------------------------------

    def _apply(self, verdict: Verdict, result: StepResult) -> None:
        """Deliver tokens until the choice ends, rewind the counters, report."""
        request, now_s = verdict.work.request, self._clock()
        if verdict.work.num_drafts:
            result.stats.draft_lengths.append(verdict.num_drafts)
        delivered = 0
        for position, token_id in enumerate(verdict.tokens):
            if request.max_tokens == 0:
                request.finish(FinishReason.LENGTH)
                break
            source = verdict.sources[position]
            logprobs = verdict.logprobs[position] if verdict.logprobs else None
            request.deliver(token_id)
            request.unreleased.append(TokenOutput(token_id, "", source, logprobs))
            result.stats.count_generated(request.exit_layer, source)
            delivered += 1
            if self._check_end(request, token_id):
                break
        if verdict.num_drafts:
            self._count_draft(verdict, delivered, result.stats)
        request.end_round()
        if delivered:
            self._count_delivery(verdict, delivered, now_s, result.stats)
        output = self._output(request, result.stats)
        if output.tokens or output.finish_reason or output.prompt_logprobs is not None:
            result.outputs.append(output)

    @staticmethod
    def _check_end(request: Request, token_id: int) -> bool:
        """Decide whether the choice ends with the token just delivered."""
        params = request.params
        past_minimum = request.num_generated >= params.min_tokens
        matched = request.detokenizer.push(token_id, check_stop=past_minimum)
        if token_id in request.eos_token_ids:
            request.finish(FinishReason.STOP)
        elif token_id in params.stop_token_ids:
            request.finish(FinishReason.STOP, token_id)
        elif matched is not None:
            request.finish(FinishReason.STOP, matched)
        elif request.num_generated >= request.max_tokens:
            request.finish(FinishReason.LENGTH)
        return request.finish_reason is not None

    def _output(
        self,
        request: Request,
        stats: StepStats,
        error: str | None = None,
        error_code: str | None = None,
    ) -> ChoiceOutput:
        """Release the text that is decided; on the last output, all of it and the metrics."""
        ended = request.finish_reason is not None
        texts = request.detokenizer.release(final=ended)
        released = request.unreleased[: len(texts)]
        del request.unreleased[: len(texts)]
        prompt_logprobs = None
        if not request.prompt_logprobs_sent and not request.wants_prompt_logprobs:
            assert request.prompt_logprobs is not None
            prompt_logprobs = tuple(request.prompt_logprobs)
            request.prompt_logprobs_sent = True
        if ended:
            if request.times.admission is None:
                stats.left_queue.append(request.request_id)
            stats.finished.append(self._finished_stats(request))
        return ChoiceOutput(
            request_id=request.request_id,
            index=request.index,
            tokens=tuple(
                replace(token, text=text) for token, text in zip(released, texts, strict=True)
            ),
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
            metrics=self._metrics(request) if ended else None,
            prompt_logprobs=prompt_logprobs,
            error=error,
            error_code=error_code,
        )

    def _end_all(
        self,
        reason: FinishReason,
        applies: Callable[[Request], bool],
        error: str | None = None,
        error_code: str | None = None,
    ) -> None:
        for request in [request for request in self.scheduler.requests() if applies(request)]:
            # It has ended already if the step that ended it broke off.
            if request.finish_reason is None:
                request.finish(reason)
                output = self._output(request, self._ended.stats, error, error_code)
                self._ended.outputs.append(output)
            self.scheduler.remove(request)

    # --- counting ----------------------------------------------------------------------------

    def _learn(self, plan: list[Work], last_pass: PassStats) -> None:
        if any(work.is_prefill for work in plan):
            row_layers = sum(work.num_rows * work.request.exit_layer for work in plan)
            self.scheduler.budget.observe(row_layers, last_pass.duration_s)

    def _count_plan(self, plan: RoundPlan, stats: StepStats) -> None:
        stats.num_preemptions += plan.num_preempted
        for request in plan.admitted:
            if request.num_evictions == 0:
                stats.left_queue.append(request.request_id)
                if request.leader is None:
                    stats.num_prompt_tokens += request.num_prompt

    @staticmethod
    def _count_draft(verdict: Verdict, delivered: int, stats: StepStats) -> None:
        """Count a verified draft. Drafts beyond the choice's end were never judged by anyone."""
        request = verdict.work.request
        num_accepted = sum(source is TokenSource.DRAFT for source in verdict.sources[:delivered])
        was_cut = delivered < len(verdict.tokens)
        num_drafts = delivered if was_cut else verdict.num_drafts
        request.tally.count(verdict.draft_exit_layer, num_drafts, num_accepted)
        stats.drafts.append(DraftStats(verdict.draft_exit_layer, num_drafts, num_accepted))

    @staticmethod
    def _count_delivery(verdict: Verdict, delivered: int, now_s: float, stats: StepStats) -> None:
        request = verdict.work.request
        times = request.times
        if times.last_token is not None:
            stats.intervals.append(
                IntervalStats(
                    request.exit_layer,
                    verdict.num_drafts > 0,
                    now_s - times.last_token,
                    delivered,
                )
            )
        if times.first_token is None:
            times.first_token = now_s
        times.last_token = now_s

    def _count_gauges(self, stats: StepStats) -> None:
        stats.num_running = self.scheduler.num_running
        stats.num_waiting = self.scheduler.num_waiting
        stats.kv_usage_ratio = self.cache.usage_ratio

    def _finished_stats(self, request: Request) -> FinishedStats:
        times = request.times
        now_s = self._clock()
        first = times.first_token
        return FinishedStats(
            exit_layer=request.exit_layer,
            speculative=request.tally.num_drafts > 0,
            reason=request.finish_reason or FinishReason.ERROR,
            num_prompt_tokens=request.num_prompt,
            num_generated_tokens=request.num_generated,
            queue_s=(now_s if times.admission is None else times.admission) - times.arrival,
            time_to_first_token_s=None if first is None else first - times.arrival,
            prefill_s=None if first is None or times.admission is None else first - times.admission,
            decode_s=None if first is None else (times.last_token or first) - first,
            e2e_s=now_s - times.arrival,
        )

    def _metrics(self, request: Request) -> ChoiceMetrics:
        times = request.times
        now_s = self._clock()
        first, last = times.first_token, times.last_token
        mean_itl_s = None
        if first is not None and last is not None and request.num_generated > 1:
            mean_itl_s = (last - first) / (request.num_generated - 1)
        return ChoiceMetrics(
            exit_layer=request.exit_layer,
            seed=request.sampling.seed,
            num_prompt_tokens=request.num_prompt,
            num_cached_tokens=request.num_cached_tokens,
            num_generated_tokens=request.num_generated,
            queue_time_s=(now_s if times.admission is None else times.admission) - times.arrival,
            time_to_first_token_s=None if first is None else first - times.arrival,
            generation_time_s=(last or now_s) - times.arrival,
            mean_itl_s=mean_itl_s,
            speculation=request.tally.freeze(),
        )

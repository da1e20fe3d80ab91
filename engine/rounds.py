"""One round on a backend: draft passes, one sweep for everybody, acceptance.

A position is *shallow* when its residual at the draft exit was saved by a draft pass. The final
sweep starts shallow positions from that residual and all others from their token. That single
rule makes decode rows, prompt chunks, verification, n-gram drafts and the last draft's bonus row
one case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.backends.protocol import Backend, Draw, Residuals, Row, Sweep
from engine.metrics import PassStats, Phase
from engine.request import Request
from engine.sampling.acceptance import sources
from engine.sampling.drawing import top_probability
from engine.sampling.logprobs import token_logprobs
from engine.sampling.sampler import sample
from engine.scheduler.plan import Work
from engine.speculative.controller import NOTHING, DraftController, DraftRound
from engine.speculative.costs import CostFormula, CostModel, PassShape
from engine.speculative.planning import NGRAM, NO_LOAD, Candidate, Load
from engine.types import SEED_LIMIT, TokenLogprobs, TokenSource

Said = int | NDArray[np.float32]
"""What a head says of a position: the token drawn, or the logits to sample it from."""

_HEAD_ROWS = 64
"""Rows whose full logits exist at once while prompts are scored: bounds the memory."""


@dataclass(slots=True)
class Verdict:
    """What a round brought for one choice: tokens in order, not yet delivered."""

    work: Work
    tokens: list[int] = field(default_factory=list)
    sources: tuple[TokenSource, ...] = ()
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_drafts: int = 0
    draft_exit_layer: int = 0
    """Depth of the drafts; 0 for n-grams."""


@dataclass(slots=True)
class _Passes:
    """What ran in a round: for the metrics, and for the controller to learn from."""

    stats: list[PassStats] = field(default_factory=list)
    times: list[tuple[PassShape, float]] = field(default_factory=list)

    def add(self, phase: Phase, rows: Sequence[Row], head_rows: int, duration_s: float) -> None:
        """Note a pass; `head_rows` of its rows went through the head."""
        deepest = max([row.last for row in rows])
        row_layers = sum([row.last - row.first for row in rows])
        self.stats.append(PassStats(phase, deepest, len(rows), duration_s))
        self.times.append((PassShape(phase == "draft", deepest, row_layers, head_rows), duration_s))


def new_controller(backend: Backend) -> DraftController:
    """One that knows a backend's dtypes, and has learned nothing yet."""
    formula = CostFormula.of(
        backend.config, backend.head_dtype, len(backend.draft_ids), backend.linear_dtype
    )
    return DraftController(CostModel(formula))


class RoundRunner:
    """Runs the rounds that a scheduler plans; decides who drafts how much of what it reserved."""

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self.controller = new_controller(backend)
        """May be replaced between rounds, with all that it has learned."""

    def run(self, plan: Sequence[Work]) -> tuple[list[Verdict], list[PassStats]]:
        """Draft, sweep and judge; raises whatever the backend raises."""
        started = self._clock()
        tables = {index: work.request.blocks for index, work in enumerate(plan)}
        passes = _Passes()
        decoding = [index for index, work in enumerate(plan) if not work.is_prefill]
        proposals = self._proposals(plan, decoding)
        candidates = [_candidate(plan[index], proposals.get(index, ())) for index in decoding]
        asked = self._clock()
        drafting = self.controller.begin_round(candidates, _prefill_load(plan))
        planning_s = self._clock() - asked
        self._draft(plan, tables, decoding, proposals, drafting, passes)
        verdicts = self._verify(plan, tables, passes)
        for place, index in enumerate(decoding):
            verdict = verdicts[index]
            if verdict.num_drafts:
                drafting.judge(place, verdict.num_drafts, len(verdict.tokens) - 1)
        in_passes = sum(duration for _, duration in passes.times)
        overhead_s = self._clock() - started - in_passes
        self.controller.learn(passes.times, overhead_s, planning_s)
        return verdicts, passes.stats

    # --- drafting ----------------------------------------------------------------------------

    @staticmethod
    def _proposals(plan: Sequence[Work], decoding: Sequence[int]) -> dict[int, list[int]]:
        """What n-grams offer, where a choice may have it, and there is any."""
        proposals: dict[int, list[int]] = {}
        for index in decoding:
            work = plan[index]
            if work.num_drafts and work.request.ngrams is not None:
                tokens = list(work.request.ngrams.propose(work.num_drafts))
                if tokens:
                    proposals[index] = tokens
        return proposals

    def _draft(
        self,
        plan: Sequence[Work],
        tables: dict[int, list[int]],
        decoding: Sequence[int],
        proposals: dict[int, list[int]],
        drafting: DraftRound,
        passes: _Passes,
    ) -> None:
        """Draft as chosen; sequences go by their place among those that decode."""
        active: list[int] = []
        for place, choice in enumerate(drafting.choices):
            request = plan[decoding[place]].request
            if choice == NOTHING or not choice.num_drafts:
                continue
            if choice.draft_exit != NGRAM:
                active.append(place)
                continue
            for token in proposals[decoding[place]][: choice.num_drafts]:
                request.add_draft(token)
                if request.ends_with(token):
                    break
        while active:
            started = self._clock()
            requests = [plan[decoding[place]].request for place in active]
            rows = [
                self._draft_row(decoding[place], request, drafting.choices[place].draft_exit)
                for place, request in zip(active, requests, strict=True)
            ]
            residuals = self._backend.sweep(Sweep(rows, tables))
            drafts = self._draft_tokens(requests, rows, residuals)
            passes.add("draft", rows, len(rows), self._clock() - started)
            going: list[int] = []
            for place, request, (token, confidence) in zip(active, requests, drafts, strict=True):
                if token is None:
                    continue
                request.add_draft(token)
                drafting.note(place, confidence)
                full = len(request.drafts) >= drafting.choices[place].num_drafts
                if not full and not request.ends_with(token):
                    going.append(place)
            active = drafting.proceed(going) if going else going

    def _draft_row(self, index: int, request: Request, depth: int) -> Row:
        """The next position through the first layers, its residual saved for verification."""
        position = request.num_shallow
        row = Row(
            sequence=index,
            position=position,
            first=0,
            last=depth,
            token=request.token_at(position),
            target_state=request.exit_state(position),
        )
        request.mark_shallow(depth)
        return row

    def _draft_tokens(
        self, requests: Sequence[Request], rows: Sequence[Row], residuals: Residuals
    ) -> list[tuple[int | None, float]]:
        """The next draft of each request, whose last draft ran in the row of the same index.

        With it comes the probability of the likeliest id. None where no id of the draft
        vocabulary can follow.
        """
        drafts: list[tuple[int | None, float]] = [(None, 0.0)] * len(rows)
        drawn: list[int] = []
        scored: list[int] = []
        for index, request in enumerate(requests):
            needs_logits = request.sampling.needs_logits(len(request.drafts))
            (scored if needs_logits else drawn).append(index)
        if drawn:
            draws = [draw_after(requests[index], len(requests[index].drafts)) for index in drawn]
            depths = [rows[index].last for index in drawn]
            picks = self._backend.draw_drafts(residuals, drawn, depths, draws)
            for index, token, probability in zip(drawn, *picks, strict=True):
                drafts[index] = token if probability else None, probability
        if scored:
            depths = [rows[index].last for index in scored]
            logits = self._backend.draft_head(residuals, scored, depths)
            for index, row_logits in zip(scored, logits, strict=True):
                token = draft_of(row_logits, requests[index], self._backend.draft_ids)
                drafts[index] = token, top_probability(row_logits)
        return drafts

    # --- the sweep for everybody -------------------------------------------------------------

    def _verify(
        self, plan: Sequence[Work], tables: dict[int, list[int]], passes: _Passes
    ) -> list[Verdict]:
        started = self._clock()
        rows: list[Row] = []
        first_rows: list[int] = []
        for index, work in enumerate(plan):
            first_rows.append(len(rows))
            request = work.request
            end = request.num_full + work.num_rows + len(request.drafts)
            rows += [
                self._full_row(index, request, position)
                for position in range(request.num_full, end)
            ]
        residuals = self._backend.sweep(Sweep(rows, tables))
        verdicts = self._judge(plan, rows, first_rows, residuals)
        for work in plan:
            work.request.mark_full(work.num_rows + len(work.request.drafts))
        head_rows = sum(1 + len(work.request.drafts) for work in plan if work.reaches_end)
        passes.add(_phase(plan), rows, head_rows, self._clock() - started)
        return verdicts

    def _full_row(self, index: int, request: Request, position: int) -> Row:
        if position < request.num_shallow:
            return Row(
                sequence=index,
                position=position,
                first=request.draft_exit_layer,
                last=request.exit_layer,
                token=None,
                source_state=request.exit_state(position),
            )
        token = request.token_at(position)
        return Row(index, position, first=0, last=request.exit_layer, token=token)

    def _judge(
        self,
        plan: Sequence[Work],
        rows: Sequence[Row],
        first_rows: Sequence[int],
        residuals: Residuals,
    ) -> list[Verdict]:
        """Ask the full head where a token or a prompt's score is due, and accept what it says."""
        scored: list[int] = []
        draws: dict[int, Draw] = {}
        for work, first in zip(plan, first_rows, strict=True):
            request = work.request
            if work.reaches_end:
                for num_drafts, row in enumerate(_token_rows(work, first)):
                    if request.needs_logits(num_drafts):
                        scored.append(row)
                    else:
                        draws[row] = draw_after(request, num_drafts)
            if request.wants_prompt_logprobs:
                self._score_prompt(work, first, rows, residuals)
        said: dict[int, Said] = {}
        if draws:
            depths = [rows[row].last for row in draws]
            tokens = self._backend.draw(residuals, list(draws), depths, list(draws.values()))
            said.update(zip(draws, tokens, strict=True))
        if scored:
            logits = self._backend.head(residuals, scored, [rows[row].last for row in scored])
            said.update(zip(scored, logits, strict=True))
        return [
            self._accept(work, [said[row] for row in _token_rows(work, first)])
            if work.reaches_end
            else Verdict(work)
            for work, first in zip(plan, first_rows, strict=True)
        ]

    def _accept(self, work: Work, said: Sequence[Said]) -> Verdict:
        """The target's tokens, one past the drafts that it agrees with.

        `said[i]` speaks for the position after i drafts.
        """
        request, drafts = work.request, work.request.drafts
        verdict = Verdict(work, num_drafts=len(drafts), draft_exit_layer=request.draft_exit_layer)
        for num_accepted, answer in enumerate(said):
            token = token_of(answer, request, num_accepted)
            verdict.tokens.append(token)
            if request.params.logprobs is not None:
                assert isinstance(answer, np.ndarray)
                verdict.logprobs.append(token_logprobs(answer, token, request.params.logprobs))
            if num_accepted < len(drafts) and token != drafts[num_accepted]:
                break
        verdict.sources = sources(len(drafts), len(verdict.tokens) - 1)
        return verdict

    def _score_prompt(
        self, work: Work, first: int, rows: Sequence[Row], residuals: Residuals
    ) -> None:
        """Append the logprobs of the prompt tokens that this chunk's positions predict."""
        request = work.request
        scores = request.prompt_logprobs
        assert scores is not None and request.params.prompt_logprobs is not None
        # After a preemption the chunk may begin before the positions that are still to score.
        start = max(len(scores) - 1, request.num_full)
        end = min(request.num_full + work.num_rows, request.num_prompt - 1)
        for chunk in range(start, end, _HEAD_ROWS):
            positions = range(chunk, min(chunk + _HEAD_ROWS, end))
            picked = [first + position - request.num_full for position in positions]
            logits = self._backend.head(residuals, picked, [rows[row].last for row in picked])
            for position, row_logits in zip(positions, logits, strict=True):
                scores.append(
                    token_logprobs(
                        row_logits, request.tokens[position + 1], request.params.prompt_logprobs
                    )
                )


def _candidate(work: Work, proposal: Sequence[int]) -> Candidate:
    """A choice that decodes, as the controller sees it; `proposal` is what n-grams offer."""
    policy = work.request.policy
    exits = [] if policy.exit_layer is None else [policy.exit_layer]
    if proposal:
        exits.append(NGRAM)
    return Candidate(
        depth=work.request.exit_layer,
        limit=work.num_drafts,
        exact=policy.is_exact,
        exits=exits,
        records=work.request.draft_records,
    )


def _prefill_load(plan: Sequence[Work]) -> Load:
    """The rows of prompts, which share the final sweep."""
    reading = [work for work in plan if work.is_prefill]
    if not reading:
        return NO_LOAD
    return Load(
        max(work.request.exit_layer for work in reading),
        sum(work.num_rows * work.request.exit_layer for work in reading),
        sum(work.reaches_end for work in reading),
    )


def draw_after(request: Request, num_drafts: int) -> Draw:
    """How the token after the first `num_drafts` drafts is drawn."""
    state = request.sampling
    position = request.num_known + num_drafts
    return Draw(state.params.temperature, state.seed % SEED_LIMIT, position)


def draft_of(
    logits: NDArray[np.float32], request: Request, draft_ids: NDArray[np.int64]
) -> int | None:
    """The draft after those that there are; None where no id of the draft vocabulary may come."""
    position = request.num_known + len(request.drafts)
    return sample(logits, request.sampling, position, request.drafts, draft_ids)


def token_of(said: Said, request: Request, num_drafts: int) -> int:
    """The target's token after the first `num_drafts` drafts."""
    if not isinstance(said, np.ndarray):
        return said
    drafts = request.drafts[:num_drafts]
    token = sample(said, request.sampling, request.num_known + num_drafts, drafts)
    assert token is not None, "the full vocabulary always has an answer"
    return token


def _token_rows(work: Work, first: int) -> range:
    """The rows, of a choice whose first is `first`, after which a token is due."""
    last_known = first + work.num_rows - 1
    return range(last_known, last_known + 1 + len(work.request.drafts))


def _phase(plan: Sequence[Work]) -> Phase:
    kinds: set[Phase] = set()
    for work in plan:
        if work.is_prefill:
            kinds.add("prefill")
        else:
            kinds.add("verify" if work.request.drafts else "decode")
    return kinds.pop() if len(kinds) == 1 else "mixed"

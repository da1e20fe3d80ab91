"""One choice of a request: its tokens, its two counters, and how they may change.

`num_full` counts the positions whose K/V exist in every layer up to the choice's exit,
`num_shallow` those whose K/V exist below the draft exit; always
0 ≤ num_full ≤ num_shallow ≤ known + drafted. Prefill raises both, drafting raises
`num_shallow`, verification raises `num_full`, and the end of a round rewinds both to what the
delivered tokens vouch for. Between rounds num_shallow == num_full ≤ known − 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from engine.cache.manager import CommitState
from engine.config import MAX_SPECULATIONS
from engine.detokenizer import Detokenizer
from engine.sampling.sampler import SamplingState
from engine.speculative.acceptance import DraftRecord
from engine.speculative.drafting import DraftPolicy
from engine.speculative.ngram import NgramIndex
from engine.types import (
    FinishReason,
    SamplingParams,
    SpeculationMetrics,
    TokenLogprobs,
    TokenOutput,
)


class RequestStatus(StrEnum):
    """Where a choice stands with the scheduler."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True)
class RequestTimes:
    """Clock readings, in seconds, as far as they have happened."""

    arrival: float
    admission: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass(slots=True)
class SpeculationTally:
    """Drafts of one choice that were verified, counted over delivered tokens."""

    draft_exit_layer: int | None = None
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_per_position: list[int] = field(default_factory=list)

    def count(self, draft_exit_layer: int, num_draft_tokens: int, num_accepted: int) -> None:
        """Count one verified draft; a depth of 0 stands for n-grams."""
        self.draft_exit_layer = draft_exit_layer or self.draft_exit_layer
        self.num_drafts += 1
        self.num_draft_tokens += num_draft_tokens
        self.num_accepted_tokens += num_accepted
        missing = num_draft_tokens - len(self.accepted_per_position)
        self.accepted_per_position += [0] * missing
        for position in range(num_accepted):
            self.accepted_per_position[position] += 1

    def freeze(self) -> SpeculationMetrics | None:
        """The tally as reported; None if nothing was drafted."""
        if not self.num_drafts:
            return None
        return SpeculationMetrics(
            draft_exit_layer=self.draft_exit_layer,
            num_drafts=self.num_drafts,
            num_draft_tokens=self.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
            accepted_per_position=tuple(self.accepted_per_position),
        )


class Request:
    """A choice on its way through the engine. Only its methods change its counters."""

    def __init__(
        self,
        *,
        request_id: str,
        index: int,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        exit_layer: int,
        max_tokens: int,
        eos_token_ids: Sequence[int],
        sampling: SamplingState,
        detokenizer: Detokenizer,
        policy: DraftPolicy,
        ngrams: NgramIndex | None,
        arrival_s: float,
        leader: Request | None = None,
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.params = params
        self.exit_layer = exit_layer
        self.max_tokens = max_tokens
        self.eos_token_ids = frozenset(() if params.ignore_eos else eos_token_ids)
        self.sampling = sampling
        self.detokenizer = detokenizer
        self.policy = policy
        self.ngrams = ngrams
        self.leader = leader
        """The first choice of the same prompt: this one waits until its prompt is cached."""

        self.tokens: list[int] = list(prompt_token_ids)
        self.num_prompt = len(self.tokens)
        self.num_full = 0
        self.num_shallow = 0
        self.drafts: list[int] = []
        self.draft_exit_layer = 0
        self.draft_records: dict[int, DraftRecord] = {}
        """How this choice's drafts have fared, by draft exit."""

        self.status = RequestStatus.WAITING
        self.place = (params.priority, 0)
        """Order of service: priority, then arrival."""
        self.blocks: list[int] = []
        self.commit_state: CommitState | None = None
        self.slot: int | None = None
        """Index of this choice's exit-state slots while it runs."""

        self.times = RequestTimes(arrival_s)
        self.num_cached_tokens = 0
        self.num_evictions = 0
        self.tally = SpeculationTally()
        self.unreleased: list[TokenOutput] = []
        """Tokens whose text is still held back, without their text."""
        self.prompt_logprobs: list[TokenLogprobs | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self.prompt_logprobs_sent = params.prompt_logprobs is None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None

    # --- sizes -------------------------------------------------------------------------------

    @property
    def num_known(self) -> int:
        """Prompt tokens and delivered tokens."""
        return len(self.tokens)

    @property
    def num_generated(self) -> int:
        """Delivered tokens."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Known positions without full K/V; 1 for a choice that decodes."""
        return len(self.tokens) - self.num_full

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt positions are still to be scored."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt

    def needs_logits(self, num_drafts: int) -> bool:
        """Whether the token after so many drafts takes more than a draw by the backend.

        A function of the request and the position alone: so that a token's arithmetic, too, is
        the same with speculation and without.
        """
        return self.params.logprobs is not None or self.sampling.needs_logits(num_drafts)

    def ends_with(self, token_id: int) -> bool:
        """Whether a token ends the choice by itself: EOS, or a stop token."""
        return token_id in self.eos_token_ids or token_id in self.params.stop_token_ids

    def max_drafts(self, max_model_len: int) -> int:
        """The longest draft that could still be delivered whole, with its bonus token."""
        left = min(self.max_tokens - self.num_generated, max_model_len - self.num_known)
        return max(0, left - 1)

    def exit_state(self, position: int) -> int:
        """Slot of the saved residual of a position in [num_full, num_full + 16)."""
        assert self.slot is not None
        offset = position - self.num_full
        assert 0 <= offset < MAX_SPECULATIONS, f"no exit state for offset {offset}"
        return self.slot * MAX_SPECULATIONS + offset

    def token_at(self, position: int) -> int:
        """The known or drafted token at a position."""
        known = len(self.tokens)
        return self.tokens[position] if position < known else self.drafts[position - known]

    # --- transitions between rounds ----------------------------------------------------------

    def arrive(self, number: int) -> None:
        """Take the place of arrival `number` among the choices of the same priority."""
        self.place = (self.params.priority, number)

    def admit(
        self, blocks: list[int], commit_state: CommitState, num_cached: int, slot: int, now_s: float
    ) -> None:
        """WAITING → RUNNING with its blocks, the first `num_cached` positions being filled."""
        assert self.status is RequestStatus.WAITING and num_cached < self.num_known
        self.status = RequestStatus.RUNNING
        self.blocks, self.commit_state, self.slot = blocks, commit_state, slot
        self.num_full = self.num_shallow = num_cached
        if self.times.admission is None:
            self.times.admission = now_s
            self.num_cached_tokens = num_cached

    def evict(self) -> None:
        """RUNNING → WAITING, everything computed forgotten. The caller has freed the blocks."""
        assert self.status is RequestStatus.RUNNING
        self.status = RequestStatus.WAITING
        self.num_evictions += 1
        self._forget()

    def finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """Mark as ended; the caller frees what it holds."""
        assert self.finish_reason is None, "a choice ends exactly once"
        self.finish_reason, self.stop_reason = reason, stop_reason

    def release(self) -> None:
        """→ FINISHED. The caller has freed the blocks."""
        assert self.finish_reason is not None
        self.status = RequestStatus.FINISHED
        self._forget()

    def _forget(self) -> None:
        self.blocks, self.commit_state, self.slot = [], None, None
        self.num_full = self.num_shallow = 0
        self.drafts = []

    # --- transitions within a round ----------------------------------------------------------

    def begin_round(self) -> None:
        """Check that the last round left nothing behind."""
        assert self.num_shallow == self.num_full <= self.num_known - 1
        assert not self.drafts

    def mark_shallow(self, draft_exit_layer: int) -> None:
        """One more position has K/V below the draft exit, and its exit state is saved."""
        self.draft_exit_layer = draft_exit_layer
        self.num_shallow += 1

    def add_draft(self, token_id: int) -> None:
        """A draft for the position after the last known or drafted one."""
        self.drafts.append(token_id)

    def mark_full(self, num_rows: int) -> None:
        """`num_rows` more positions have K/V in every layer up to the exit."""
        self.num_full += num_rows
        self.num_shallow = max(self.num_shallow, self.num_full)
        assert self.num_full <= self.num_known + len(self.drafts)

    def deliver(self, token_id: int) -> None:
        """A token that the choice really gets."""
        self.tokens.append(token_id)
        self.sampling.append(token_id)
        if self.ngrams is not None:
            self.ngrams.append(token_id)

    def end_round(self) -> None:
        """Rewind both counters to the delivered tokens: that is the whole roll-back."""
        self.num_full = self.num_shallow = min(self.num_full, self.num_known - 1)
        self.drafts = []
        self.draft_exit_layer = 0

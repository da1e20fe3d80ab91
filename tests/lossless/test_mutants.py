"""Faults put into the engine on purpose: each must show as wrong tokens, or trip an assertion.

The expected tokens are the oracle's, worked out while the engine is whole. The backend lets
faults happen, so that most show where they hurt: in the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import engine.rounds
from engine.backends.protocol import Row, Sweep
from engine.cache.manager import CommitState, KVCacheManager
from engine.cache.prefix import PrefixIndex, PrefixMatch
from engine.config import EngineConfig
from engine.request import Request
from engine.rounds import RoundRunner, Said, Verdict, draw_after, token_of
from engine.sampling import noise
from engine.sampling.acceptance import sources
from engine.sampling.sampler import SamplingState, sample
from engine.scheduler.plan import Work
from engine.scheduler.scheduler import Scheduler
from engine.types import SamplingParams, SpeculativeParams
from support.engine_runs import EngineRun, Model, Submission, expected_completion
from support.fake_backend import FakeBackend, fake_config
from support.hashing import Words
from support.lax_backend import LaxBackend
from support.letters import letters_tokenizer
from support.oracle import FromScratch

NUM_LAYERS, DRAFT_LAYERS = 6, 2
MODEL_CONFIG = fake_config(48, NUM_LAYERS, 128)
MAX_MODEL_LEN = 64

Tokens = dict[int, tuple[int, ...]]
"""Submission → its first choice's tokens."""


class UntidyBackend(LaxBackend):
    """Loses the K/V of the last draft's row in every verification."""

    def sweep(self, sweep: Sweep) -> Words:
        residuals = super().sweep(sweep)
        size = self.cells.shape[1] // self.num_blocks
        verified = {row.sequence for row in sweep.rows if row.source_state is not None}
        for row in sweep.rows:
            if row.sequence in verified and row.token is not None:
                block = sweep.block_tables[row.sequence][row.position // size]
                self.cells[:, block * size + row.position % size] = np.uint64(1)
        return residuals

    def allocate(self, num_blocks: int, block_size: int, num_states: int) -> None:
        self.num_blocks = num_blocks
        super().allocate(num_blocks, block_size, num_states)


def make_model(kind: type[FakeBackend]) -> Model:
    def make_backend() -> FakeBackend:
        return kind(MODEL_CONFIG, agreement=0.7)

    scratch = FromScratch(lambda: FakeBackend(MODEL_CONFIG, agreement=0.7))
    return Model(MODEL_CONFIG, letters_tokenizer(48), make_backend, scratch)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, one after another or all at once, that a fault has to spoil."""

    submissions: tuple[Submission, ...]
    config: EngineConfig


def config(**changes: Any) -> EngineConfig:
    return EngineConfig(
        **{
            "block_size": 4,
            "max_model_len": MAX_MODEL_LEN,
            "kv_cache_tokens": 512,
            "draft_exit_layer": DRAFT_LAYERS,
            **changes,
        }
    )


def request(
    prompt: Sequence[int], num_drafts: int = 4, add_step: int = 0, **params: Any
) -> Submission:
    params = {"max_tokens": 24, "seed": 17, "temperature": 0.8, **params}
    speculative = SpeculativeParams(num_speculations=num_drafts)
    return Submission(tuple(prompt), SamplingParams(**params, speculative=speculative), add_step)


PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5)


def drafting(**params: Any) -> Workload:
    """Three requests that share nothing, drafting at once over small blocks."""
    starts = (PROMPT, PROMPT[3:], PROMPT[5:])
    submissions = [request(p, seed=seed, **params) for seed, p in enumerate(starts)]
    return Workload(tuple(submissions), config(block_size=2, enable_prefix_caching=False))


def penalised() -> Workload:
    return drafting(frequency_penalty=2.0, repetition_penalty=1.8)


def restricted() -> Workload:
    return drafting(allowed_token_ids=tuple(range(0, 48, 3)))


def next_turns() -> Workload:
    """A conversation: what was answered comes back as the beginning of the next prompt."""
    first = request(PROMPT)
    answer = expected(first)
    later = [
        request((*PROMPT, *answer, 7, 8), add_step=40 + 40 * turn, seed=turn) for turn in range(2)
    ]
    return Workload((first, *later), config(block_size=1))


def two_depths() -> Workload:
    """The same prompt at exit 3, then at full depth, ending before another block is complete."""
    shallow = request(PROMPT, exit_layer=3, max_tokens=2)
    deep = request(PROMPT, max_tokens=3, add_step=10)
    return Workload((shallow, deep), config())


@cache
def model() -> Model:
    return make_model(LaxBackend)


def expected(submission: Submission) -> tuple[int, ...]:
    seed = submission.params.seed
    assert seed is not None
    return expected_completion(model(), submission, seed, MAX_MODEL_LEN).tokens


def tokens_of(workload: Workload, kind: type[FakeBackend]) -> Tokens:
    """What the engine, as it is now, answers."""
    on = make_model(kind)
    answers = EngineRun(on, on.make_backend(), workload.config).answer(workload.submissions)
    return {number: answer.token_ids for (number, _), answer in answers.items()}


# --- the faults ------------------------------------------------------------------------------

Fault = Callable[[pytest.MonkeyPatch], None]


def accept_unchecked(patch: pytest.MonkeyPatch) -> None:
    def accept(self: RoundRunner, work: Work, said: Sequence[Said]) -> Verdict:
        drafts = list(work.request.drafts)
        bonus = token_of(said[-1], work.request, len(drafts))
        labels = sources(len(drafts), len(drafts))
        return Verdict(work, [*drafts, bonus], labels, num_drafts=len(drafts))

    patch.setattr(RoundRunner, "_accept", accept)


def keep_going_after_a_rejection(patch: pytest.MonkeyPatch) -> None:
    """Targets after the first disagreement were conditioned on a draft that did not stand."""

    def accept(self: RoundRunner, work: Work, said: Sequence[Said]) -> Verdict:
        drafts = work.request.drafts
        tokens = [token_of(answer, work.request, index) for index, answer in enumerate(said)]
        return Verdict(work, tokens, sources(len(drafts), len(drafts)), num_drafts=len(drafts))

    patch.setattr(RoundRunner, "_accept", accept)


def skip_rollback(patch: pytest.MonkeyPatch) -> None:
    def end_round(self: Request) -> None:
        self.drafts = []

    patch.setattr(Request, "end_round", end_round)


def skip_rollback_of_exit_states(patch: pytest.MonkeyPatch) -> None:
    """After a rejection, the corrected token's position still counts as drafted through."""
    full_row = RoundRunner._full_row

    def resumed_row(self: RoundRunner, index: int, request: Request, position: int) -> Row:
        row = full_row(self, index, request, position)
        if row.first == 0 and request.num_generated > 1 and not request.drafts:
            state = request.exit_state(position)
            row = row._replace(first=DRAFT_LAYERS, token=None, source_state=state)
        return row

    patch.setattr(RoundRunner, "_full_row", resumed_row)


def noise_without_position(patch: pytest.MonkeyPatch) -> None:
    words = noise.words
    patch.setattr(noise, "words", lambda seed, position, ids: words(seed, 0, ids))


def noise_by_round(patch: pytest.MonkeyPatch) -> None:
    """Noise numbered by rounds' own count, not by absolute position."""
    patch.setattr(engine.rounds, "draw_after", lambda request, _: draw_after(request, 0))


def penalties_without_drafts(patch: pytest.MonkeyPatch) -> None:
    def forgetful(
        logits: NDArray[np.float32],
        state: SamplingState,
        position: int,
        drafts: Sequence[int] = (),
        ids: NDArray[np.int64] | None = None,
    ) -> int | None:
        return sample(logits, state, position, (), ids)

    patch.setattr(engine.rounds, "sample", forgetful)


def drawn_from_everything(patch: pytest.MonkeyPatch) -> None:
    """Verification lets the backend draw, which knows nothing of what is allowed."""
    patch.setattr(Request, "needs_logits", lambda self, num_drafts: False)


def commit_drafts(patch: pytest.MonkeyPatch) -> None:
    """Blocks are indexed as soon as drafts fill them, before verification has spoken."""
    settle, end_round = Scheduler.settle, Request.end_round
    drafted: dict[int, list[int]] = {}

    def remember(self: Request) -> None:
        drafted[id(self)] = [*self.tokens[: self.num_full], *self.drafts][: self.num_full]
        end_round(self)

    def settle_drafts(self: Scheduler, request: Request) -> None:
        tokens = drafted.get(id(request), [])
        if request.num_generated and len(request.blocks) * self._cache.block_size >= len(tokens):
            state = CommitState()
            self._cache.commit(request.blocks, tokens, len(tokens), request.exit_layer, state)
        settle(self, request)

    patch.setattr(Request, "end_round", remember)
    patch.setattr(Scheduler, "settle", settle_drafts)


def commit_one_too_many(patch: pytest.MonkeyPatch) -> None:
    """The last delivered token counts as cached, though its row never ran."""

    def settle(self: Scheduler, request: Request) -> None:
        assert request.commit_state is not None
        self._cache.commit(
            request.blocks,
            request.tokens,
            request.num_full + (request.num_pending == 1),
            request.exit_layer,
            request.commit_state,
        )
        self._cache.trim(request.blocks, request.num_known)

    def remove(self: Scheduler, request: Request) -> None:
        if request.slot is not None:
            settle(self, request)
        take_out(self, request)

    take_out = Scheduler.remove
    patch.setattr(KVCacheManager, "assert_writable", lambda self, blocks, start: None)
    patch.setattr(Scheduler, "remove", remove)


def ignore_depth(patch: pytest.MonkeyPatch) -> None:
    match = PrefixIndex.match

    def deep_enough(
        self: PrefixIndex, tokens: Sequence[int], exit_layer: int, max_tokens: int
    ) -> PrefixMatch:
        return match(self, tokens, 1, max_tokens)

    patch.setattr(PrefixIndex, "match", deep_enough)


def exit_state_of_another_position(patch: pytest.MonkeyPatch) -> None:
    full_row = RoundRunner._full_row

    def mirrored(self: RoundRunner, index: int, request: Request, position: int) -> Row:
        row = full_row(self, index, request, position)
        if row.source_state is not None:
            other = request.num_full + request.num_shallow - 1 - position
            row = row._replace(source_state=request.exit_state(other))
        return row

    patch.setattr(RoundRunner, "_full_row", mirrored)


def exit_state_of_an_earlier_round(patch: pytest.MonkeyPatch) -> None:
    draft_row = RoundRunner._draft_row

    def saved_once(self: RoundRunner, index: int, request: Request, depth: int) -> Row:
        row = draft_row(self, index, request, depth)
        return row if request.num_generated < 8 else row._replace(target_state=None)

    patch.setattr(RoundRunner, "_draft_row", saved_once)


def trim_the_wrong_end(patch: pytest.MonkeyPatch) -> None:
    def trim(self: KVCacheManager, blocks: list[int], num_tokens: int) -> None:
        while len(blocks) > self.num_blocks_for(num_tokens):
            self._pool.release(blocks.pop(0))

    patch.setattr(KVCacheManager, "trim", trim)


def verify_from_the_wrong_layer(patch: pytest.MonkeyPatch) -> None:
    """Verification runs the last draft layer a second time."""
    full_row = RoundRunner._full_row

    def early(self: RoundRunner, index: int, request: Request, position: int) -> Row:
        row = full_row(self, index, request, position)
        return row if row.first == 0 else row._replace(first=row.first - 1)

    patch.setattr(RoundRunner, "_full_row", early)


def nothing(patch: pytest.MonkeyPatch) -> None:
    """For faults that are the backend's."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault, the workload that must reveal it, and an assertion if that comes first."""

    fault: Fault
    workload: Callable[[], Workload]
    kind: type[FakeBackend] = LaxBackend
    trips: str | None = None
    """What the engine's own assertion says; None: the tokens are wrong."""


MUTANTS: Mapping[str, Mutant] = MappingProxyType(
    {
        "accept-unchecked": Mutant(accept_unchecked, drafting),
        "keep-going-after-a-rejection": Mutant(keep_going_after_a_rejection, drafting),
        "skip-rollback[assertion]": Mutant(skip_rollback, drafting, trips="only accepted tokens"),
        "skip-rollback-of-exit-states": Mutant(skip_rollback_of_exit_states, drafting),
        "noise-without-position": Mutant(noise_without_position, drafting),
        "noise-by-round": Mutant(noise_by_round, drafting),
        "penalties-without-drafts": Mutant(penalties_without_drafts, penalised),
        "drawn-from-everything": Mutant(drawn_from_everything, restricted),
        "commit-drafts[assertion]": Mutant(commit_drafts, next_turns, trips="in the prefix cache"),
        "commit-one-too-many": Mutant(commit_one_too_many, next_turns),
        "ignore-depth": Mutant(ignore_depth, two_depths),
        "exit-state-of-another-position": Mutant(exit_state_of_another_position, drafting),
        "exit-state-of-an-earlier-round": Mutant(exit_state_of_an_earlier_round, drafting),
        "trim-the-wrong-end": Mutant(trim_the_wrong_end, drafting),
        "verify-from-the-wrong-layer": Mutant(verify_from_the_wrong_layer, drafting),
        "bonus-row-lost": Mutant(nothing, drafting, UntidyBackend),
    }
)


@pytest.mark.parametrize("make", [drafting, penalised, restricted, next_turns, two_depths])
def test_the_whole_engine_passes(make: Callable[[], Workload]) -> None:
    workload = make()
    wanted = {number: expected(s) for number, s in enumerate(workload.submissions)}
    assert tokens_of(workload, LaxBackend) == wanted


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    workload = mutant.workload()
    wanted = {number: expected(s) for number, s in enumerate(workload.submissions)}
    mutant.fault(monkeypatch)
    if mutant.trips is not None:
        with pytest.raises(AssertionError, match=mutant.trips):
            tokens_of(workload, mutant.kind)
    else:
        assert tokens_of(workload, mutant.kind) != wanted

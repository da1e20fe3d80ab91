"""A backend whose arithmetic is exact hashing, so that a bookkeeping error changes tokens.

Every cell, state and residual is a 64-bit word that depends on everything before it: a stale
cell, a wrong block, a missing write, a swapped state or a wrong order turns all later logits
into others. Sums wrap and are exact, so the row rule holds by construction: a row's logits are
the same bit for bit in any batch, chunking or placement.

A residual is three words (columns of R × 3). `CONTENT` is the hash of the tokens up to the
row's, made from the cells of layer 0 and the same at every depth; `CHAIN` folds in all cells of
each layer in turn; `DEPTH` is the number of layers run. Logits mix noise from `CONTENT`, which
all exits share, with noise from `CHAIN`, which none share: that sets how often exits agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from engine.backends.drawing import draw_draft_rows, draw_rows
from engine.backends.protocol import Draw, Row, Sweep, draft_vocabulary
from engine.config import ModelConfig
from support.hashing import Words, keys, mix, near_normal
from support.sweep_plan import Ints, Limits, Segment, SweepPlan, plan_sweep

CONTENT, CHAIN, DEPTH = range(3)

LOGIT_STD = 2.5
"""Spread of the logits of one row, about that of a small language model."""
PRIOR_SLOPE = 0.5
"""Low ids are the frequent ones, as in a byte-level BPE vocabulary: −slope · ln(1 + id)."""

_NO_BIAS: Mapping[int, float] = MappingProxyType({})


def fake_config(
    vocab_size: int = 64,
    num_layers: int = 6,
    max_position_embeddings: int = 256,
    eos_token_ids: tuple[int, ...] = (),
) -> ModelConfig:
    """A model configuration of which a fake backend looks at just these fields."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        num_layers=num_layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        intermediate_size=8,
        max_position_embeddings=max_position_embeddings,
        eos_token_ids=eos_token_ids,
    )


@dataclass(slots=True)
class Counters:
    """What a fake backend was asked to do since its allocation."""

    rows_per_layer: Ints
    num_sweeps: int = 0
    num_head_rows: int = 0
    num_draft_head_rows: int = 0
    log: list[tuple[Row, ...]] = field(default_factory=list)
    """The rows of every sweep, if the backend keeps a log."""


@dataclass(frozen=True, slots=True)
class History:
    """Where the active rows (n of them) find what they read among a layer's gathered cells."""

    positions: Ints
    weights: Words
    """One odd factor per position: it makes the sum over cells depend on their order."""
    starts: Ints
    ends: Ints
    """Row i reads cells[starts[i]:ends[i]], its own the last of them."""

    def sums(self, terms: Words) -> Words:
        """Each row's sum of the terms, one per cell, that it reads."""
        totals = np.empty(len(terms) + 1, dtype=terms.dtype)
        totals[0] = 0
        terms.cumsum(out=totals[1:])
        return totals[self.ends] - totals[self.starts]


class FakeBackend:
    """`Backend` for tests of everything above it: exact, numpy only, strict.

    `agreement` (0 to 1) dials how often the argmax of two exits is the same, roughly that share
    over a few hundred ids. At 1 the exits are identical, and errors below layer 0 go unseen.
    With `context_tokens`, what exits share depends on so many last tokens only: high agreement
    then makes text that repeats itself, for n-grams to find. `logit_bias` is added at all exits
    (to make EOS likely, for instance). With `check_reads` a read of a cell that was not written
    for that position since the allocation is an `AssertionError`, as is any breach of the
    protocol; without, such a cell reads as poison, which differs between allocations and with
    `poison_seed`.
    """

    name = "fake"
    head_dtype = "fp32"
    linear_dtype = "ternary"
    kv_dtype = "fp32"
    description = "made up"
    agreement_power = 4.0
    """Found by measuring; more ids to choose from need more alike logits."""

    def __init__(
        self,
        config: ModelConfig,
        agreement: float = 0.7,
        draft_vocab_size: int | None = None,
        seed: int = 0,
        *,
        logit_bias: Mapping[int, float] = _NO_BIAS,
        context_tokens: int | None = None,
        check_reads: bool = True,
        keep_log: bool = False,
        poison_seed: int = 0,
    ) -> None:
        assert 0.0 <= agreement <= 1.0, "agreement must lie in 0..1"
        self.config = config
        self.cells: Words = np.empty((config.num_layers, 0), dtype=np.uint64)
        """The K/V memory, num_layers × slots: for tests to corrupt."""
        self.written: Ints = np.empty((config.num_layers, 0), dtype=np.int64)
        """For which position each cell was last written; −1: not since the allocation."""
        self._check_reads = check_reads
        self._keep_log = keep_log
        self._poison_seed = poison_seed
        self._num_allocations = 0
        self._limits: Limits | None = None
        self._context_tokens = context_tokens
        self._state_words: Words = np.empty((0, 3), dtype=np.uint64)
        self._state_positions: Ints = np.empty(0, dtype=np.int64)
        self._closed = False
        # Correlation of two exits' logits: their agreement falls off much faster than it.
        shared = 1.0 - (1.0 - agreement) ** self.agreement_power
        self._shared_std = LOGIT_STD * shared**0.5
        self._own_std = LOGIT_STD * (1.0 - shared) ** 0.5
        vocab, layers = config.vocab_size, config.num_layers
        self._token_words = keys(8 * seed, vocab)
        self._logit_words = keys(8 * seed + 1, vocab)
        self._cell_words = keys(8 * seed + 2, (layers, config.max_position_embeddings))
        self._weights = keys(8 * seed + 3, config.max_position_embeddings) | np.uint64(1)
        self._offsets = -PRIOR_SLOPE * np.log1p(np.arange(vocab, dtype=np.float64))
        for token_id, bias in logit_bias.items():
            self._offsets[token_id] += bias
        draft_size = vocab if draft_vocab_size is None else draft_vocab_size
        self._draft_ids = draft_vocabulary(vocab, draft_size, config.eos_token_ids)
        self.counters = self._new_counters()

    def allocate(self, num_blocks: int, block_size: int, num_states: int) -> None:
        """Forget everything: all cells hold this allocation's poison, no state is saved."""
        assert not self._closed, "allocate after close"
        assert num_blocks >= 1 and block_size >= 1 and num_states >= 0
        config = self.config
        self._num_allocations += 1
        poison = keys(self._poison_seed, self._num_allocations)[-1]
        shape = (config.num_layers, num_blocks * block_size)
        self.cells = np.full(shape, poison, dtype=np.uint64)
        self.written = np.full(shape, -1, dtype=np.int64)
        self._limits = Limits(
            num_layers=config.num_layers,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            num_blocks=num_blocks,
            block_size=block_size,
            num_states=num_states,
        )
        self._state_words = np.full((num_states, 3), poison, dtype=np.uint64)
        self._state_positions = np.full(num_states, -1, dtype=np.int64)
        self.counters = self._new_counters()

    def sweep(self, sweep: Sweep) -> Words:
        """Run the rows; returns R × 3 words (`CONTENT`, `CHAIN`, `DEPTH`)."""
        assert not self._closed, "sweep after close"
        assert self._limits is not None, "sweep before allocate"
        rows = sweep.rows
        self.counters.num_sweeps += 1
        if self._keep_log:
            self.counters.log.append(tuple(rows))
        if not rows:
            return np.empty((0, 3), dtype=np.uint64)
        plan = plan_sweep(sweep, self._limits)
        residuals = self._start(rows)
        weights = self._weights.take(plan.history_positions, mode="clip")
        for segment in plan.segments:
            self._run(segment, plan, weights, residuals)
        residuals[:, DEPTH] = plan.lasts
        for index, row in enumerate(rows):
            if row.target_state is not None:
                self._state_words[row.target_state] = residuals[index]
                self._state_positions[row.target_state] = row.position
        return residuals

    def head(
        self, residuals: Words, rows: Sequence[int], depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """Full-head logits; asserts that each row was run to exactly the depth named."""
        self.counters.num_head_rows += len(rows)
        return self._head(residuals, rows, depths, None)

    def draft_head(
        self, residuals: Words, rows: Sequence[int], depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """The same floats as `head`, of the draft vocabulary only."""
        self.counters.num_draft_head_rows += len(rows)
        return self._head(residuals, rows, depths, self._draft_ids)

    def draw(
        self, residuals: Words, rows: Sequence[int], depths: Sequence[int], draws: Sequence[Draw]
    ) -> list[int]:
        """Picks from what `head` says."""
        return draw_rows(self.head(residuals, rows, depths), draws)

    def draw_drafts(
        self, residuals: Words, rows: Sequence[int], depths: Sequence[int], draws: Sequence[Draw]
    ) -> tuple[list[int], list[float]]:
        """Picks from what `draft_head` says."""
        return draw_draft_rows(self.draft_head(residuals, rows, depths), draws, self._draft_ids)

    @property
    def draft_ids(self) -> NDArray[np.int64]:
        """The ids that `draft_head` scores, ascending."""
        return self._draft_ids

    def close(self) -> None:
        """Refuse all further use."""
        self._closed = True

    def forget_states(self) -> None:
        """Make every saved exit state unreadable, as the end of a round does by contract."""
        self._state_positions.fill(-1)

    def _new_counters(self) -> Counters:
        return Counters(rows_per_layer=np.zeros(self.config.num_layers, dtype=np.int64))

    def _start(self, rows: Sequence[Row]) -> Words:
        """The residuals that the rows begin with, R × 3."""
        tokens = [row.token or 0 for row in rows]
        residuals = np.zeros((len(rows), 3), dtype=np.uint64)
        residuals[:, CHAIN] = self._token_words[tokens]
        for index, row in enumerate(rows):
            state = row.source_state
            if state is None:
                continue
            saved = int(self._state_positions[state])
            assert saved >= 0, f"exit state {state} is read but not saved: {row}"
            depth = int(self._state_words[state, DEPTH])
            assert (saved, depth) == (row.position, row.first), (
                f"exit state {state} holds position {saved} after {depth} layers: {row}"
            )
            residuals[index] = self._state_words[state]
        return residuals

    def _run(self, segment: Segment, plan: SweepPlan, weights: Words, residuals: Words) -> None:
        """Take the segment's rows through its layers, in place."""
        rows, layers = segment.rows, slice(segment.first, segment.last)
        self.counters.rows_per_layer[layers] += len(rows)
        slots = plan.slots[rows]
        # The marks of all layers first: at each layer every row writes before any reads.
        self.written[layers, slots] = plan.positions[rows]
        if self._check_reads:
            self._assert_written(segment, plan)
        words = residuals[rows].T.copy()
        history = History(plan.history_positions, weights, plan.starts[rows], plan.ends[rows])
        position_words = self._cell_words[:, plan.positions[rows]]
        for layer in range(segment.first, segment.last):
            cells = self.cells[layer]
            cells[slots] = words[CHAIN] + position_words[layer]
            self._attend(words, layer, cells.take(plan.history_slots), history)
        residuals[rows] = words.T

    def _assert_written(self, segment: Segment, plan: SweepPlan) -> None:
        """Every cell that the segment's rows read holds its position, at each of its layers."""
        layers = slice(segment.first, segment.last)
        wrong = self.written[layers].take(plan.history_slots, axis=1) != plan.history_positions
        if not wrong.any():
            return
        # Some of these cells may belong to sequences that are not active at these layers.
        for start, end in zip(plan.starts[segment.rows], plan.ends[segment.rows], strict=True):
            for depth, position in np.argwhere(wrong[:, start:end])[:1].tolist():
                layer, slot = segment.first + depth, int(plan.history_slots[start + position])
                held = int(self.written[layer, slot])
                content = f"holds position {held}" if held >= 0 else "was never written"
                raise AssertionError(
                    f"position {position} is read at layer {layer} from slot {slot}, "
                    f"which {content}"
                )

    def _attend(self, words: Words, layer: int, cells: Words, history: History) -> None:
        """Fold the cells that each row reads into its words (3 × n), in place."""
        read = history.sums(cells * history.weights)
        if layer == 0:
            words[CONTENT] = mix(self._content(read, cells, history))
        words[CHAIN] = mix(words[CHAIN] + read)

    def _content(self, read: Words, cells: Words, history: History) -> Words:
        """What all exits know of the context: all of it, or the last few tokens."""
        if self._context_tokens is None:
            return read
        content = np.zeros_like(read)
        for back in range(self._context_tokens):
            indices = history.ends - 1 - back
            inside = indices >= history.starts
            positions = history.positions[indices]
            # Less what the position put in: the same tokens give the same content anywhere.
            token_words = cells[indices] - self._cell_words[0, positions]
            content += np.where(inside, token_words * self._weights[back], np.uint64(0))
        return content

    def _head(
        self,
        residuals: Words,
        rows: Sequence[int],
        depths: Sequence[int],
        ids: NDArray[np.int64] | None,
    ) -> NDArray[np.float32]:
        assert not self._closed, "head after close"
        picked = residuals[np.asarray(rows, dtype=np.int64)]
        run = picked[:, DEPTH].astype(np.int64).tolist()
        assert run == list(depths), f"rows ran {run} layers, the head is told {list(depths)}"
        shared, own = self._sources(picked)
        return self._logits(shared, own, ids)

    def _sources(self, picked: Words) -> tuple[Words, Words]:
        """The words that logits come from: what exits share, and what is each exit's own."""
        return picked[:, CONTENT], picked[:, CHAIN]

    def _logits(
        self, shared: Words, own: Words, ids: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        """Logits over `ids` (None: all)."""
        words, offsets = self._logit_words, self._offsets
        if ids is not None:
            words, offsets = words[ids], offsets[ids]
        logits = self._shared_std * near_normal(shared[:, None] + words)
        logits += self._own_std * near_normal(own[:, None] ^ words)
        logits += offsets
        return logits.astype(np.float32)


class TableBackend(FakeBackend):
    """Logits are `table(depth)[previous token, last token]`: for tests of exact distributions.

    Takes what `FakeBackend` takes; `agreement` dials how alike the tables of two depths are.
    The tokens are read off the cache: every layer's cells spell them, and each row decodes all
    that it reads at each of its layers. A cell that spells no token for its position and layer,
    or layers that spell different tokens, lead to logits that are in no table. Before the first
    token comes token 0.
    """

    name = "table"
    agreement_power = 1.5

    @property
    def num_contexts(self) -> int:
        """Pairs of tokens."""
        return self.config.vocab_size**2

    def table(self, depth: int) -> NDArray[np.float32]:
        """The logits at an exit, V × V × V: [previous token, last token, next token]."""
        picked = np.zeros((self.num_contexts, 3), dtype=np.uint64)
        picked[:, CONTENT] = np.arange(self.num_contexts)
        picked[:, DEPTH] = depth
        return self._logits(*self._sources(picked), None).reshape((self.config.vocab_size,) * 3)

    def _attend(self, words: Words, layer: int, cells: Words, history: History) -> None:
        """Set `CONTENT` to the number of the context that the cells spell.

        `CHAIN` remains the token's word while all is well; if not, what it writes at deeper
        layers spells nothing, so that the damage stays.
        """
        spelt = cells - self._cell_words[layer, history.positions]
        by_word = np.argsort(self._token_words)
        places = np.searchsorted(self._token_words[by_word], spelt)
        tokens = by_word[np.minimum(places, len(by_word) - 1)]
        num_wrong = history.sums((self._token_words[tokens] != spelt).astype(np.uint64))
        is_first = history.ends - history.starts == 1
        previous = np.where(is_first, 0, tokens[history.ends - 2])
        context = previous * self.config.vocab_size + tokens[history.ends - 1]
        if layer > 0:
            num_wrong += words[CONTENT] != context
        damage = mix(history.sums(cells * history.weights)) | np.uint64(1 << 63)
        words[CONTENT] = np.where(num_wrong > 0, damage, context.astype(np.uint64))
        words[CHAIN] += num_wrong

    def _sources(self, picked: Words) -> tuple[Words, Words]:
        shared = mix(picked[:, CONTENT] + self._logit_words[0])
        return shared, mix(shared + picked[:, DEPTH])

"""Random histories of requests, compared after every operation with a slow, obvious model.

Two independent judges watch the manager. `Model` repeats its bookkeeping in the plainest way:
a dictionary from whole prefixes to (block, depth), with no hashes, chains or commit state.
`Simulation` plays scheduler and backend: it "writes" K/V (the tokens up to a position, and the
depth) into slots, drafts and rejected drafts included, and checks that a writer owns the block
alone and that every matched block holds exactly the prefix it was matched for.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from engine.cache.manager import CommitState, KVCacheManager
from engine.cache.pool import OutOfBlocksError
from engine.cache.prefix import Entry, PrefixIndex, PrefixMatch, chain_hash

Prefix = tuple[int, ...]

HASHES = {
    "good": chain_hash,
    "four values": lambda parent_hash, tokens: chain_hash(parent_hash, tokens) % 4,
    "one value": lambda parent_hash, tokens: 0,
}
EXITS = (2, 4, 6)


class Model:
    """The cache's rules, written for clarity only."""

    def __init__(self, num_blocks: int, block_size: int, events: Counter[str]) -> None:
        self.size = block_size
        self.events = events
        self.plain = set(range(num_blocks))
        self.idle: list[int] = []  # cached-free, released longest ago first
        self.holders: Counter[int] = Counter()
        self.index: dict[Prefix, tuple[int, int]] = {}

    @property
    def num_free(self) -> int:
        return len(self.plain) + len(self.idle)

    def is_indexed(self, block: int) -> bool:
        return any(block == indexed for indexed, _ in self.index.values())

    def match(self, tokens: Prefix, exit_layer: int, max_tokens: int) -> list[int]:
        blocks: list[int] = []
        for end in range(self.size, min(len(tokens), max_tokens) + 1, self.size):
            block, depth = self.index.get(tokens[:end], (-1, 0))
            if depth < exit_layer:
                self.events["miss: shallower"] += depth > 0
                break
            self.events["hit: equal depth" if depth == exit_layer else "hit: deeper"] += 1
            blocks.append(block)
        return blocks

    def take(self, matched: list[int], fresh: list[int]) -> None:
        for block in matched:
            self.events["shared with a running request"] += self.holders[block] > 0
            self.holders[block] += 1
            if block in self.idle:
                self.idle.remove(block)
        while len(self.plain) < len(fresh):
            oldest = self.idle[0]
            (prefix,) = (key for key, (block, _) in self.index.items() if block == oldest)
            for key in [key for key in self.index if key[: len(prefix)] == prefix]:
                block = self.unindex(key)
                self.events["evicted"] += block == oldest
                self.events["dropped with its ancestor"] += block != oldest
        assert set(fresh) <= self.plain and len(set(fresh)) == len(fresh)
        self.plain -= set(fresh)
        self.holders.update(fresh)

    def unindex(self, prefix: Prefix) -> int:
        block, _ = self.index.pop(prefix)
        if block in self.idle:
            self.idle.remove(block)
            self.plain.add(block)
        return block

    def give(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.holders[block] -= 1
            if self.holders[block] == 0 and self.is_indexed(block):
                self.idle.append(block)
            elif self.holders[block] == 0:
                self.plain.add(block)

    def commit(self, blocks: list[int], tokens: Prefix, num_full: int, depth: int) -> None:
        for i in range(num_full // self.size):
            prefix = tokens[: (i + 1) * self.size]
            if prefix not in self.index:
                self.index[prefix] = (blocks[i], depth)
            elif self.index[prefix][1] < depth:
                self.events["replaced by deeper"] += 1
                displaced = self.unindex(prefix)
                self.events["displaced while shared"] += self.holders[displaced] > 1
                self.index[prefix] = (blocks[i], depth)
            else:
                self.events["duplicate stays private"] += self.index[prefix][0] != blocks[i]


@dataclass(eq=False)
class Request:
    tokens: list[int]
    exit_layer: int
    blocks: list[int] = field(default_factory=list)
    num_full: int = 0
    state: CommitState = field(default_factory=CommitState)
    num_committed: int = 0
    """Complete blocks at the last commit that had any news."""


class Simulation:
    """One seeded history: a scheduler without a clock, a backend without numbers."""

    def __init__(
        self,
        seed: int,
        events: Counter[str],
        hash_name: str = "good",
        *,
        index_type: type[PrefixIndex] = PrefixIndex,
        manager_type: type[KVCacheManager] = KVCacheManager,
        commit_drafts: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.events = events
        self.commit_drafts = commit_drafts
        self.size = self.rng.randint(1, 4)
        self.num_blocks = self.rng.randint(6, 18)
        self.manager = manager_type(self.num_blocks, self.size, hash_block=HASHES[hash_name])
        self.manager._index = index_type(self.size, HASHES[hash_name])
        self.model = Model(self.num_blocks, self.size, events)
        self.content: dict[int, tuple[Prefix, int]] = {}
        """Slot → the tokens up to its position, and the layers of K/V written there."""
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        longest = self.num_blocks * self.size // 2
        self.stems = [self.draw(self.rng.randint(1, longest)) for _ in range(3)]

    def draw(self, count: int) -> list[int]:
        return [self.rng.randrange(2) for _ in range(count)]

    def run(self, num_operations: int) -> None:
        operations: list[Callable[[], None]] = [self.arrive, self.admit, self.advance, self.leave]
        for _ in range(num_operations):
            self.rng.choices(operations, weights=(2, 3, 8, 1))[0]()
            self.check()
        while self.running:
            self.release(self.running[0])
            self.check()
        assert self.manager.num_free == self.num_blocks and self.manager.usage_ratio == 0.0
        assert self.manager.grow([], self.num_blocks * self.size), "every block can be had again"
        assert self.manager.num_indexed == 0 and not self.manager._index._buckets

    def check(self) -> None:
        self.manager.check_integrity()
        indexed = {entry.block: entry.depth for entry in self.manager._index._by_block.values()}
        assert indexed == dict(self.model.index.values())
        assert self.manager.num_free == self.model.num_free
        assert self.manager.num_indexed == len(self.model.index) <= self.num_blocks
        held = Counter(block for request in self.running for block in request.blocks)
        assert held == +self.model.holders
        buckets = self.manager._index._buckets.values()
        self.events["two prefixes under one hash"] += any(len(bucket) > 1 for bucket in buckets)

    def arrive(self) -> None:
        stem = self.rng.choice(self.stems)
        tokens = stem[: self.rng.randint(1, len(stem))] + self.draw(self.rng.randint(0, 3))
        self.waiting.append(Request(tokens, self.rng.choice(EXITS)))

    def admit(self) -> None:
        if not self.waiting:
            return
        request = self.rng.choice(self.waiting)
        tokens = tuple(request.tokens)
        match = self.manager.match(tokens, request.exit_layer, len(tokens) - 1)
        expected = self.model.match(tokens, request.exit_layer, len(tokens) - 1)
        assert list(match.blocks) == expected and match.num_tokens == len(expected) * self.size
        for position in range(match.num_tokens):
            prefix, depth = self.content[self.slot(match.blocks, position)]
            assert prefix == tokens[: position + 1] and depth >= request.exit_layer
        num_tokens = self.rng.randint(match.num_tokens + 1, len(tokens))
        num_new = -(-num_tokens // self.size) - len(expected)
        num_idle = len(set(expected) & set(self.model.idle))
        self.events["admitted from cached-free blocks"] += num_idle > 0
        blocks = self.manager.admit(match, num_tokens)
        if num_new > self.model.num_free - num_idle:
            self.events["admission: short"] += 1
            self.events["admission: short by the match"] += num_new <= self.model.num_free
            assert blocks is None
            return
        assert blocks is not None and blocks[: len(expected)] == expected
        assert len(blocks) == len(expected) + num_new
        self.model.take(expected, blocks[len(expected) :])
        request.blocks, request.num_full = blocks, match.num_tokens
        request.state, request.num_committed = self.manager.commit_state(match), len(expected)
        self.waiting.remove(request)
        self.running.append(request)

    def advance(self) -> None:
        """One round of one request: a prompt chunk, or drafts that are verified."""
        if not self.running:
            return
        request = self.rng.choice(self.running)
        known = len(request.tokens)
        if known >= (self.num_blocks - 1) * self.size:
            self.release(request)
        elif request.num_full < known - 1:
            end = min(known, request.num_full + self.rng.randint(1, 2 * self.size))
            if self.reserve(request, end):
                self.write(request, request.tokens, end)
                self.accept(request, end, [])
        else:
            drafts = self.draw(self.rng.randint(0, 3))
            if not self.reserve(request, known + len(drafts) + 1):
                drafts = []
                if not self.reserve(request, known + 1):
                    self.preempt(request)
                    return
            self.write(request, request.tokens + drafts, known + len(drafts))
            if self.commit_drafts:
                self.commit(request, request.tokens + drafts, known + len(drafts))
            accepted = drafts[: self.rng.randint(0, len(drafts))]
            self.events["drafts rejected"] += len(accepted) < len(drafts)
            self.accept(request, known + len(accepted), accepted)

    def reserve(self, request: Request, num_tokens: int) -> bool:
        before = list(request.blocks)
        num_new = max(0, -(-num_tokens // self.size) - len(before))
        fits = num_new <= self.model.num_free
        self.events["growth: short"] += not fits
        assert self.manager.grow(request.blocks, num_tokens) == fits
        assert request.blocks[: len(before)] == before
        assert len(request.blocks) == len(before) + (num_new if fits else 0)
        self.model.take([], request.blocks[len(before) :])
        return fits

    def write(self, request: Request, tokens: list[int], end: int) -> None:
        self.manager.assert_writable(request.blocks, request.num_full)
        for position in range(request.num_full, end):
            block = request.blocks[position // self.size]
            assert self.model.holders[block] == 1, "a shared block is written"
            assert not self.model.is_indexed(block), "an indexed block is written"
            slot = self.slot(request.blocks, position)
            self.content[slot] = (tuple(tokens[: position + 1]), request.exit_layer)

    def accept(self, request: Request, num_full: int, accepted: list[int]) -> None:
        request.num_full = num_full
        if num_full >= len(request.tokens):
            request.tokens += accepted + self.draw(1)
        known = len(request.tokens)
        kept = request.blocks[: -(-known // self.size)]
        self.events["blocks trimmed"] += len(kept) < len(request.blocks)
        self.model.give(request.blocks[len(kept) :])
        self.manager.trim(request.blocks, known)
        assert request.blocks == kept
        self.check()
        num_complete = num_full // self.size
        if num_complete > request.num_committed:
            tokens = tuple(request.tokens)
            old = tokens[: request.num_committed * self.size]
            self.events["chain indexed anew"] += bool(old) and old not in self.model.index
            self.model.commit(request.blocks, tokens, num_full, request.exit_layer)
            request.num_committed = num_complete
        self.commit(request, request.tokens, num_full)

    def commit(self, request: Request, tokens: list[int], num_full: int) -> None:
        self.manager.commit(request.blocks, tokens, num_full, request.exit_layer, request.state)

    def leave(self) -> None:
        if self.running:
            request = self.rng.choice(self.running)
            (self.release if self.rng.random() < 0.7 else self.preempt)(request)

    def preempt(self, request: Request) -> None:
        self.events["preempted"] += 1
        self.release(request)
        request.num_full = 0
        self.waiting.append(request)

    def release(self, request: Request) -> None:
        self.running.remove(request)
        self.model.give(request.blocks)
        self.manager.free(request.blocks)
        assert request.blocks == []

    def slot(self, blocks: list[int] | tuple[int, ...], position: int) -> int:
        return blocks[position // self.size] * self.size + position % self.size


EVENTS = {
    "hit: equal depth",
    "hit: deeper",
    "miss: shallower",
    "shared with a running request",
    "admitted from cached-free blocks",
    "admission: short",
    "admission: short by the match",
    "growth: short",
    "evicted",
    "dropped with its ancestor",
    "replaced by deeper",
    "displaced while shared",
    "duplicate stays private",
    "chain indexed anew",
    "drafts rejected",
    "blocks trimmed",
    "preempted",
}


@pytest.mark.parametrize("hash_name", HASHES)
def test_histories_agree_with_the_model(hash_name: str) -> None:
    events: Counter[str] = Counter()
    for seed in range(40):
        Simulation(seed, events, hash_name).run(200)
    wanted = EVENTS if hash_name == "good" else {*EVENTS, "two prefixes under one hash"}
    assert {name for name in wanted if events[name] < 5} == set(), events


def test_one_long_history_leaks_nothing() -> None:
    Simulation(seed=1, events=Counter()).run(3000)


class ComparesHashesOnly(PrefixIndex):
    def _find(self, hash_: int, parent: Entry | None, tokens: Prefix) -> Entry | None:
        return next(iter(self._buckets.get(hash_, ())), None)


class ForgetsTheParent(PrefixIndex):
    def _find(self, hash_: int, parent: Entry | None, tokens: Prefix) -> Entry | None:
        return next((e for e in self._buckets.get(hash_, ()) if e.tokens == tokens), None)


class IgnoresDepth(PrefixIndex):
    def match(self, tokens: Sequence[int], exit_layer: int, max_tokens: int) -> PrefixMatch:
        return super().match(tokens, 0, max_tokens)


class KeepsDescendants(PrefixIndex):
    def drop(self, block: int) -> list[int]:
        self._remove(self._by_block[block])
        return []


class CountsMatchedBlocksAsFree(KVCacheManager):
    def _num_free_besides(self, match: PrefixMatch) -> int:
        return self.num_free


class FreesTheHeadFirst(KVCacheManager):
    def free(self, blocks: list[int]) -> None:
        blocks.reverse()
        super().free(blocks)


class AllocatesBeforeSharing(KVCacheManager):
    def admit(self, match: PrefixMatch, num_tokens: int) -> list[int] | None:
        num_new = self.num_blocks_for(num_tokens) - len(match.blocks)
        if num_new > self._num_free_besides(match):
            return None
        fresh = self._pool.allocate(num_new)
        for block in match.blocks:
            self._pool.share(block)
        return [*match.blocks, *fresh]


class LeaksOnTrim(KVCacheManager):
    def trim(self, blocks: list[int], num_tokens: int) -> None:
        del blocks[self.num_blocks_for(num_tokens) :]


MUTANTS = {
    "compares hashes": partial(Simulation, hash_name="one value", index_type=ComparesHashesOnly),
    "forgets the parent": partial(Simulation, hash_name="one value", index_type=ForgetsTheParent),
    "ignores depth": partial(Simulation, index_type=IgnoresDepth),
    "keeps descendants": partial(Simulation, index_type=KeepsDescendants),
    "counts matched as free": partial(Simulation, manager_type=CountsMatchedBlocksAsFree),
    "frees the head first": partial(Simulation, manager_type=FreesTheHeadFirst),
    "allocates before sharing": partial(Simulation, manager_type=AllocatesBeforeSharing),
    "leaks on trim": partial(Simulation, manager_type=LeaksOnTrim),
    "commits drafts": partial(Simulation, commit_drafts=True),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_histories_catch_a_broken_cache(name: str) -> None:
    """Each mutant breaks one rule; if none of the histories minds, they prove nothing."""
    with pytest.raises((AssertionError, OutOfBlocksError)):
        for seed in range(20):
            MUTANTS[name](seed=seed, events=Counter()).run(200)

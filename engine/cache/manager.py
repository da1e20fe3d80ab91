"""The K/V cache as a scheduler sees it: block tables that grow, shrink and share prefixes.

A block table is the caller's plain list of block ids, in order of position; the methods here
change it in place. Position p lives in `blocks[p // block_size]`.

Nothing shared is ever written. Only complete, committed blocks are indexed, only indexed
blocks are matched, and a match covers fewer tokens than are known: so whoever holds a shared
block writes behind it only. `assert_writable` checks this from the writer's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.cache.pool import BlockPool
from engine.cache.prefix import Entry, HashBlock, PrefixIndex, PrefixMatch, chain_hash


@dataclass(slots=True)
class CommitState:
    """How far one admitted sequence's blocks have been offered to the prefix index."""

    num_blocks: int = 0
    """Leading blocks that were matched or committed."""
    last: Entry | None = None
    """The entry of the last of them, which may name another's block of the same content."""


class KVCacheManager:
    """Hands out `num_blocks` blocks of `block_size` positions and finds cached prefixes."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        *,
        hash_block: HashBlock = chain_hash,
    ) -> None:
        self._block_size = block_size
        self._enable_prefix_caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks, on_evict=self._drop_evicted)
        self._index = PrefixIndex(block_size, hash_block)
        self._num_queried_tokens = 0
        self._num_hit_tokens = 0

    @property
    def block_size(self) -> int:
        """Positions per block."""
        return self._block_size

    @property
    def num_free(self) -> int:
        """Blocks that can be taken, cached content among them."""
        return self._pool.num_free

    @property
    def num_indexed(self) -> int:
        """Blocks that the prefix index names, held or not."""
        return len(self._index)

    @property
    def usage_ratio(self) -> float:
        """Share of the blocks that somebody holds, 0 to 1."""
        return self._pool.num_used / self._pool.num_total

    @property
    def num_queried_tokens(self) -> int:
        """Tokens looked up in the prefix cache, over all admissions that succeeded."""
        return self._num_queried_tokens

    @property
    def num_hit_tokens(self) -> int:
        """Tokens found there."""
        return self._num_hit_tokens

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` positions take."""
        return -(-num_tokens // self._block_size)

    def match(self, tokens: Sequence[int], exit_layer: int, max_tokens: int) -> PrefixMatch:
        """The longest cached prefix of `tokens`, in complete blocks.

        At most `max_tokens` long (callers pass one less than they know: the last token's row
        must run to give logits), and valid to depth ≥ `exit_layer`. Changes nothing, so a
        waiting sequence may ask every round; `admit` does the counting.
        """
        if not self._enable_prefix_caching:
            return PrefixMatch()
        return self._index.match(tokens, exit_layer, max_tokens)

    def admit(self, match: PrefixMatch, num_tokens: int) -> list[int] | None:
        """A new block table for `num_tokens` positions, of which `match` holds the first.

        None, and nothing has changed, if too few blocks are free.
        """
        assert match.num_tokens <= num_tokens, "more is matched than there are tokens"
        for entry, block in zip(match.entries, match.blocks, strict=True):
            assert entry in self._index and entry.block == block, "the match is out of date"
        num_new = self.num_blocks_for(num_tokens) - len(match.blocks)
        if num_new > self._num_free_besides(match):
            return None
        # Shared first: the allocation must not evict what was matched.
        for block in match.blocks:
            self._pool.share(block)
        self._num_queried_tokens += match.num_queried
        self._num_hit_tokens += match.num_tokens
        return [*match.blocks, *self._pool.allocate(num_new)]

    def commit_state(self, match: PrefixMatch) -> CommitState:
        """The commit state of a sequence that was just admitted with `match`."""
        return CommitState(len(match.blocks), match.entries[-1] if match.entries else None)

    def grow(self, blocks: list[int], num_tokens: int) -> bool:
        """Extend a block table to hold `num_tokens` positions (never shortens it).

        False, and nothing has changed, if too few blocks are free.
        """
        num_new = self.num_blocks_for(num_tokens) - len(blocks)
        if num_new <= 0:
            return True
        if num_new > self._pool.num_free:
            return False
        blocks.extend(self._pool.allocate(num_new))
        return True

    def trim(self, blocks: list[int], num_tokens: int) -> None:
        """Give back the blocks that `num_tokens` positions do not need.

        They held drafts at most; asserts that none of them is shared or indexed.
        """
        num_kept = self.num_blocks_for(num_tokens)
        self.assert_writable(blocks, num_kept * self._block_size)
        while len(blocks) > num_kept:
            self._pool.release(blocks.pop())

    def commit(
        self,
        blocks: Sequence[int],
        tokens: Sequence[int],
        num_full: int,
        exit_layer: int,
        state: CommitState,
    ) -> None:
        """Offer every block that `num_full` accepted positions complete to the prefix index.

        `tokens` are the sequence's own, drafts excluded; K/V of the first `num_full` exists in
        layers 0..exit_layer−1. A block whose content is indexed already, as deep or deeper,
        stays private; a deeper one takes the place of a shallower. Cheap when no block was
        completed since the last call.
        """
        size = self._block_size
        num_complete = num_full // size
        assert num_full <= len(tokens), "only accepted tokens are committed"
        assert num_complete <= len(blocks), "the block table is too short"
        assert num_complete >= state.num_blocks, "committed blocks were rolled back"
        if not self._enable_prefix_caching or num_complete == state.num_blocks:
            return
        if state.last is not None and state.last not in self._index:
            # The chain ran through another's block, which was evicted. Our own blocks hold the
            # same content, so they can be indexed in its place.
            state.num_blocks, state.last = 0, None
        for i in range(state.num_blocks, num_complete):
            block_tokens = tuple(tokens[i * size : (i + 1) * size])
            done = self._index.insert(state.last, block_tokens, blocks[i], exit_layer)
            if done.displaced is not None:
                self._pool.unmark_indexed(done.displaced)
            if done.is_indexed:
                self._pool.mark_indexed(blocks[i])
            state.num_blocks, state.last = i + 1, done.entry

    def free(self, blocks: list[int]) -> None:
        """Give back a whole block table; the list is empty afterwards.

        Last block first: cached content is evicted in the order of its release, and a
        sequence's tail is of no use without its head.
        """
        while blocks:
            self._pool.release(blocks.pop())

    def assert_writable(self, blocks: Sequence[int], start: int) -> None:
        """Assert that K/V at positions ≥ `start` is this table's own: not shared, not indexed."""
        for block in blocks[start // self._block_size :]:
            assert self._pool.num_references(block) == 1, f"block {block} is shared"
            assert not self._pool.is_indexed(block), f"block {block} is in the prefix cache"

    def check_integrity(self) -> None:
        """Assert that no block is lost, double or wrongly indexed. Costs O(num_blocks)."""
        self._pool.check_integrity()
        self._index.check_integrity()
        marked = {b for b in range(self._pool.num_total) if self._pool.is_indexed(b)}
        assert marked == self._index.blocks, "pool and prefix index disagree"

    def _num_free_besides(self, match: PrefixMatch) -> int:
        """Free blocks left once the match is held: it may be cached-free now."""
        num_idle = sum(self._pool.num_references(block) == 0 for block in match.blocks)
        return self._pool.num_free - num_idle

    def _drop_evicted(self, block: int) -> None:
        for descendant in self._index.drop(block):
            self._pool.unmark_indexed(descendant)

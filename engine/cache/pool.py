"""Physical K/V blocks: reference counts, free lists and the order of eviction.

A block is in exactly one of three states:

    held         its count is positive
    cached-free  nobody holds it, but the prefix index still names its content
    plain free   nobody holds it, and its content means nothing

Both free states can be allocated. Plain free blocks go first; then cached-free ones, the one
that was released longest ago first.
"""

from __future__ import annotations

from collections.abc import Callable


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free: the caller did not look at `num_free`."""


class BlockPool:
    """`num_blocks` blocks, numbered from 0."""

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None] | None = None) -> None:
        """`on_evict(block)` is told of every indexed block that is taken for new content.

        The block is unmarked by then. The hook may unmark other blocks, and nothing else.
        """
        assert num_blocks >= 1, num_blocks
        self._on_evict = on_evict
        self._counts = [0] * num_blocks
        self._indexed = [False] * num_blocks
        # A stack: the block used last is the likeliest to lie in the processor's caches still.
        self._plain_free = list(reversed(range(num_blocks)))
        # A dict for its order: released longest ago first, and removal from the middle is O(1).
        self._cached_free: dict[int, None] = {}

    @property
    def num_total(self) -> int:
        """Blocks there are."""
        return len(self._counts)

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give: plain free and cached-free."""
        return len(self._plain_free) + len(self._cached_free)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_total - self.num_free

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one reference, evicting cached content if need be.

        Raises `OutOfBlocksError`, and changes nothing, when fewer are free.
        """
        assert count >= 0, count
        if count > self.num_free:
            raise OutOfBlocksError(f"{count} blocks asked for, {self.num_free} free")
        while len(self._plain_free) < count:
            self._evict_oldest()
        blocks = [self._plain_free.pop() for _ in range(count)]
        for block in blocks:
            self._counts[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """Add a reference to a block that is held or cached-free."""
        if self._counts[block] == 0:
            assert self._indexed[block], f"block {block} is free and holds nothing to share"
            del self._cached_free[block]
        self._counts[block] += 1

    def release(self, block: int) -> None:
        """Give one reference back; the last one frees the block."""
        assert self._counts[block] > 0, f"block {block} is released more often than taken"
        self._counts[block] -= 1
        if self._counts[block]:
            return
        if self._indexed[block]:
            self._cached_free[block] = None
        else:
            self._plain_free.append(block)

    def num_references(self, block: int) -> int:
        """How many hold the block."""
        return self._counts[block]

    def is_indexed(self, block: int) -> bool:
        """Whether the block is marked as named by the prefix index."""
        return self._indexed[block]

    def mark_indexed(self, block: int) -> None:
        """Keep the content of this held block when its last reference goes."""
        assert self._counts[block] > 0, f"block {block} is indexed while nobody holds it"
        assert not self._indexed[block], f"block {block} is indexed twice"
        self._indexed[block] = True

    def unmark_indexed(self, block: int) -> None:
        """The block's content is no longer named; if nobody holds it, it turns plain free."""
        assert self._indexed[block], f"block {block} is not indexed"
        self._indexed[block] = False
        if self._counts[block] == 0:
            del self._cached_free[block]
            self._plain_free.append(block)

    def check_integrity(self) -> None:
        """Assert that every block is in exactly one state. Costs O(num_total)."""
        used = {block for block, count in enumerate(self._counts) if count > 0}
        plain = set(self._plain_free)
        cached = set(self._cached_free)
        assert min(self._counts) >= 0, "a reference count is negative"
        assert len(plain) == len(self._plain_free), "a block is free twice"
        assert len(used) == self.num_used, "a block is lost: free + used is not the total"
        assert used | plain | cached == set(range(self.num_total)), "a block has no state"
        assert len(used) + len(plain) + len(cached) == self.num_total, "a block has two states"
        assert not any(self._indexed[block] for block in plain), "an indexed block is plain free"
        assert all(self._indexed[block] for block in cached), "a cached-free block has no content"

    def _evict_oldest(self) -> None:
        block = next(iter(self._cached_free))
        self.unmark_indexed(block)
        if self._on_evict is not None:
            self._on_evict(block)

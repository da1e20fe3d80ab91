"""The prefix index: which block holds the K/V of which prefix, and to what depth.

An entry stands for one complete block of tokens after one particular prefix. Entries form a
tree: an entry's parent stands for the block before it. They are found by a chain hash (the
parent's hash and the block's own tokens), but a hash only says where to look. A hit needs the
same parent entry and the same tokens, and the walk starts at the root, so every token of the
prefix has been compared.

Depth is how many layers of K/V the block holds. It is an attribute: a block computed to depth
12 serves a request that exits at 6, and the one index slot of a prefix goes to its deepest
block. K/V below a depth does not depend on what runs above it, so all blocks for a prefix hold
the same values as deep as they go.

Two invariants, kept by every method and asserted by `check_integrity`:
- every entry can be reached: when one goes, its descendants go with it;
- depth never grows along a path: whoever adds an entry has gone through all its ancestors and
  left each at its own depth or deeper, and entries only deepen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

HashBlock = Callable[[int, tuple[int, ...]], int]
"""(hash of the parent, the block's tokens) → chain hash."""

_ROOT_HASH = 0


def chain_hash(parent_hash: int, tokens: tuple[int, ...]) -> int:
    """Hash of a block after its prefix.

    Python's own hash will do: collisions, even ones made on purpose, cost a comparison only.
    """
    return hash((parent_hash, tokens))


@dataclass(slots=True, eq=False)
class Entry:
    """One indexed block. Compared by identity; only the index changes it."""

    hash: int
    parent: Entry | None
    """The block before; None for a sequence's first."""
    tokens: tuple[int, ...]
    block: int
    depth: int
    """Layers 0..depth−1 of the block's K/V are valid."""
    children: set[Entry] = field(default_factory=set)


class Insertion(NamedTuple):
    """What `PrefixIndex.insert` did."""

    entry: Entry
    """The prefix's entry, whoever's block it names."""
    is_indexed: bool
    """Whether it names the given block from now on."""
    displaced: int | None
    """The shallower block that it named until now."""


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The cached beginning of a sequence; `PrefixMatch()` is no hit at all.

    Good until blocks are next allocated or committed: match, then admit at once.
    """

    blocks: tuple[int, ...] = ()
    num_tokens: int = 0
    """Tokens that the blocks hold, all of them complete."""
    num_queried: int = 0
    """Tokens that were looked up."""
    entries: tuple[Entry, ...] = ()
    """The blocks' index entries, root first."""


class PrefixIndex:
    """Entries for complete blocks of `block_size` tokens, at most one per prefix and block."""

    def __init__(self, block_size: int, hash_block: HashBlock = chain_hash) -> None:
        assert block_size >= 1, block_size
        self._block_size = block_size
        self._hash_block = hash_block
        self._buckets: dict[int, list[Entry]] = {}
        self._by_block: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._by_block)

    def __contains__(self, entry: Entry) -> bool:
        """Whether this very entry is still indexed."""
        return self._by_block.get(entry.block) is entry

    @property
    def blocks(self) -> frozenset[int]:
        """The indexed blocks."""
        return frozenset(self._by_block)

    def match(self, tokens: Sequence[int], exit_layer: int, max_tokens: int) -> PrefixMatch:
        """The longest indexed prefix of at most `max_tokens` tokens, to depth ≥ `exit_layer`."""
        size = self._block_size
        num_queried = max(0, min(len(tokens), max_tokens))
        entries: list[Entry] = []
        entry: Entry | None = None
        for start in range(0, num_queried - size + 1, size):
            block_tokens = tuple(tokens[start : start + size])
            entry = self._find(self._hash(entry, block_tokens), entry, block_tokens)
            if entry is None or entry.depth < exit_layer:
                break
            entries.append(entry)
        return PrefixMatch(
            blocks=tuple(entry.block for entry in entries),
            num_tokens=len(entries) * size,
            num_queried=num_queried,
            entries=tuple(entries),
        )

    def insert(
        self, parent: Entry | None, tokens: tuple[int, ...], block: int, depth: int
    ) -> Insertion:
        """Index `block` as the K/V of `tokens` after `parent`, valid to `depth` layers.

        If the prefix has an entry already, a deeper block takes its place (and the entry keeps
        its descendants, for it means the same as before); otherwise nothing changes, save that
        the entry's own block may turn out to be valid to a greater depth.
        """
        assert len(tokens) == self._block_size, "only complete blocks are indexed"
        assert parent is None or parent in self, "the parent is no longer indexed"
        assert parent is None or parent.depth >= depth, "the parent is shallower"
        hash_ = self._hash(parent, tokens)
        entry = self._find(hash_, parent, tokens)
        if entry is not None and entry.depth >= depth:
            return Insertion(entry, is_indexed=False, displaced=None)
        if entry is not None and entry.block == block:
            # A shallower holder of this shared block has indexed it anew; it is good for more.
            entry.depth = depth
            return Insertion(entry, is_indexed=False, displaced=None)
        assert block not in self._by_block, f"block {block} is indexed for another prefix"
        if entry is not None:
            displaced = entry.block
            del self._by_block[displaced]
            entry.block, entry.depth = block, depth
        else:
            displaced = None
            entry = Entry(hash_, parent, tokens, block, depth)
            self._buckets.setdefault(hash_, []).append(entry)
            if parent is not None:
                parent.children.add(entry)
        self._by_block[block] = entry
        return Insertion(entry, is_indexed=True, displaced=displaced)

    def drop(self, block: int) -> list[int]:
        """Remove the block's entry and all its descendants; returns the descendants' blocks.

        Without their ancestor they could never be found. Kept, they would fill the index, and
        their blocks the cache; worse, the ancestor's hash may come to mean another prefix.
        """
        top = self._by_block[block]
        if top.parent is not None:
            top.parent.children.remove(top)
        descendants: list[int] = []
        pending = [top]
        while pending:
            entry = pending.pop()
            self._remove(entry)
            pending.extend(entry.children)
            if entry is not top:
                descendants.append(entry.block)
            entry.children.clear()
        return descendants

    def check_integrity(self) -> None:
        """Assert the invariants named at the top. Costs O(entries)."""
        listed = [entry for bucket in self._buckets.values() for entry in bucket]
        assert all(self._buckets.values()), "an empty bucket was left behind"
        assert len(listed) == len(self._by_block), "an entry has no block, or is listed twice"
        prefixes = {(entry.parent, entry.tokens) for entry in listed}
        assert len(prefixes) == len(listed), "a prefix has two entries"
        for block, entry in self._by_block.items():
            parent = entry.parent
            assert entry.block == block
            assert entry in self._buckets[entry.hash]
            assert entry.hash == self._hash(parent, entry.tokens)
            assert len(entry.tokens) == self._block_size
            assert all(child.parent is entry and child in self for child in entry.children)
            if parent is not None:
                assert parent in self, "an entry outlived its parent"
                assert entry in parent.children, "a parent does not know its child"
                assert parent.depth >= entry.depth, "an entry is deeper than its parent"

    def _hash(self, parent: Entry | None, tokens: tuple[int, ...]) -> int:
        return self._hash_block(_ROOT_HASH if parent is None else parent.hash, tokens)

    def _find(self, hash_: int, parent: Entry | None, tokens: tuple[int, ...]) -> Entry | None:
        for entry in self._buckets.get(hash_, ()):
            # The parent too: equal hashes do not make equal prefixes.
            if entry.parent is parent and entry.tokens == tokens:
                return entry
        return None

    def _remove(self, entry: Entry) -> None:
        del self._by_block[entry.block]
        bucket = self._buckets[entry.hash]
        bucket.remove(entry)
        if not bucket:
            del self._buckets[entry.hash]

"""The prefix index alone: depth, replacement, collisions, dropped subtrees."""

from __future__ import annotations

import pytest

from engine.cache.prefix import Entry, PrefixIndex, PrefixMatch


def always_collides(parent_hash: int, tokens: tuple[int, ...]) -> int:
    return 7


def insert_chain(
    index: PrefixIndex, tokens: list[int], blocks: list[int], depth: int
) -> list[Entry]:
    """Index consecutive blocks of two tokens, as a sequence that computed them all would."""
    entries: list[Entry] = []
    for i, block in enumerate(blocks):
        parent = entries[-1] if entries else None
        pair = (tokens[2 * i], tokens[2 * i + 1])
        entries.append(index.insert(parent, pair, block, depth).entry)
    index.check_integrity()
    return entries


def test_the_longest_prefix_in_complete_blocks_is_found() -> None:
    index = PrefixIndex(2)
    insert_chain(index, [1, 2, 3, 4, 5, 6], [10, 11, 12], depth=4)
    match = index.match([1, 2, 3, 4, 9, 9], 4, 6)
    assert (match.blocks, match.num_tokens, match.num_queried) == ((10, 11), 4, 6)
    assert index.match([1, 2, 3, 4, 5, 6, 7], 4, 100).blocks == (10, 11, 12)
    assert index.match([9, 9, 3, 4], 4, 4) == PrefixMatch(num_queried=4)
    assert index.match([3, 4], 4, 2).blocks == (), "a block counts only after its own prefix"


@pytest.mark.parametrize(
    ("max_tokens", "num_blocks"), [(-1, 0), (0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
)
def test_a_match_ends_at_max_tokens(max_tokens: int, num_blocks: int) -> None:
    index = PrefixIndex(2)
    insert_chain(index, [1, 2, 3, 4], [10, 11], depth=4)
    match = index.match([1, 2, 3, 4], 4, max_tokens)
    assert len(match.blocks) == num_blocks
    assert match.num_queried == max(0, min(4, max_tokens))


def test_a_hit_needs_the_depth() -> None:
    index = PrefixIndex(2)
    insert_chain(index, [1, 2, 3, 4], [10, 11], depth=4)
    assert index.match([1, 2, 3, 4], 3, 4).blocks == (10, 11), "deeper serves shallower"
    assert index.match([1, 2, 3, 4], 4, 4).blocks == (10, 11), "equal serves"
    assert index.match([1, 2, 3, 4], 5, 4).blocks == (), "shallower is a miss"


def test_only_a_deeper_block_replaces() -> None:
    index = PrefixIndex(2)
    _, leaf = insert_chain(index, [1, 2, 3, 4], [10, 11], depth=4)
    for depth in (3, 4):
        kept = index.insert(None, (1, 2), 20, depth)
        assert (kept.entry.block, kept.is_indexed, kept.displaced) == (10, False, None)
    deeper = index.insert(None, (1, 2), 20, 6)
    assert (deeper.entry.block, deeper.is_indexed, deeper.displaced) == (20, True, 10)
    index.check_integrity()
    assert index.blocks == {20, 11} and leaf in index
    assert index.match([1, 2, 3, 4], 4, 4).blocks == (20, 11), "descendants stay reachable"
    assert index.match([1, 2, 3, 4], 6, 4).blocks == (20,)


def test_collisions_give_no_wrong_hit() -> None:
    index = PrefixIndex(2, always_collides)
    insert_chain(index, [1, 2, 3, 4], [10, 11], depth=4)
    insert_chain(index, [5, 6, 3, 4], [20, 21], depth=4)
    assert index.match([1, 2, 3, 4], 4, 4).blocks == (10, 11)
    assert index.match([5, 6, 3, 4], 4, 4).blocks == (20, 21), "same tokens, another parent"
    assert index.match([7, 8], 4, 2).blocks == ()
    assert index.match([3, 4], 4, 2).blocks == ()
    index.drop(10)
    assert index.match([1, 2, 3, 4], 4, 4).blocks == ()
    assert index.match([5, 6, 3, 4], 4, 4).blocks == (20, 21)
    index.check_integrity()


def test_a_colliding_successor_does_not_inherit_descendants() -> None:
    """A dropped parent's hash is taken over by another prefix, whose child looks the same."""
    index = PrefixIndex(2, lambda parent_hash, tokens: 31 * parent_hash + len(tokens))
    insert_chain(index, [1, 2, 3, 4], [10, 11], depth=4)
    assert index.drop(10) == [11]
    insert_chain(index, [5, 6], [20], depth=4)
    assert index.match([5, 6, 3, 4], 4, 4).blocks == (20,)


def test_dropping_takes_all_descendants_and_nothing_else() -> None:
    index = PrefixIndex(2)
    root, left, _ = insert_chain(index, [1, 2, 3, 4, 5, 6], [10, 11, 12], depth=4)
    insert_chain(index, [1, 2, 7, 8], [10, 13], depth=4)
    insert_chain(index, [9, 9], [14], depth=4)
    assert index.drop(11) == [12]
    index.check_integrity()
    assert left not in index and root in index and index.blocks == {10, 13, 14}
    assert index.drop(10) == [13]
    assert index.drop(14) == []
    index.check_integrity()
    assert len(index) == 0 and not index._buckets, "nothing stays behind"


def test_misuse_is_caught() -> None:
    index = PrefixIndex(2)
    (root,) = insert_chain(index, [1, 2], [10], depth=4)
    with pytest.raises(AssertionError, match="complete"):
        index.insert(None, (1,), 11, 4)
    with pytest.raises(AssertionError, match="shallower"):
        index.insert(root, (3, 4), 11, 5)
    with pytest.raises(AssertionError, match="another prefix"):
        index.insert(root, (3, 4), 10, 4)
    index.drop(10)
    with pytest.raises(AssertionError, match="no longer indexed"):
        index.insert(root, (3, 4), 11, 4)
    assert len(index) == 0


@pytest.mark.parametrize("damage", ["depth", "parent", "bucket", "tokens", "twin"])
def test_check_integrity_notices_damage(damage: str) -> None:
    index = PrefixIndex(2)
    root, leaf = insert_chain(index, [1, 2, 3, 4], [10, 11], depth=4)
    if damage == "depth":
        leaf.depth = 5
    elif damage == "parent":
        index._remove(root)
    elif damage == "bucket":
        index._buckets[12345] = []
    elif damage == "tokens":
        leaf.tokens = (3, 5)
    else:
        twin = Entry(leaf.hash, root, leaf.tokens, 12, 4)
        index._buckets[leaf.hash].append(twin)
        index._by_block[12] = twin
        root.children.add(twin)
    with pytest.raises(AssertionError):
        index.check_integrity()

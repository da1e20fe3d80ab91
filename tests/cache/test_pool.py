"""The block pool alone: counts, states and eviction order."""

from __future__ import annotations

import random

import pytest

from engine.cache.pool import BlockPool, OutOfBlocksError


def test_blocks_are_distinct_and_counted() -> None:
    pool = BlockPool(5)
    taken = pool.allocate(3)
    assert len(set(taken)) == 3 and set(taken) <= set(range(5))
    assert (pool.num_free, pool.num_used, pool.num_total) == (2, 3, 5)
    for block in taken:
        pool.release(block)
    assert (pool.num_free, pool.num_used) == (5, 0)
    assert pool.allocate(0) == []
    pool.check_integrity()


def test_allocating_too_many_raises_and_changes_nothing() -> None:
    evicted: list[int] = []
    pool = BlockPool(3, on_evict=evicted.append)
    (cached,) = pool.allocate(1)
    pool.mark_indexed(cached)
    pool.release(cached)
    pool.allocate(1)
    with pytest.raises(OutOfBlocksError, match="3 blocks asked for, 2 free"):
        pool.allocate(3)
    assert (pool.num_free, evicted, pool.is_indexed(cached)) == (2, [], True)
    pool.check_integrity()


def test_a_shared_block_is_freed_by_its_last_holder() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.share(block)
    pool.release(block)
    assert (pool.num_free, pool.num_references(block)) == (0, 1)
    pool.release(block)
    assert (pool.num_free, pool.num_references(block)) == (1, 0)


def test_cached_content_goes_last_and_oldest_release_first() -> None:
    evicted: list[int] = []
    pool = BlockPool(5, on_evict=evicted.append)
    first, second, third, plain = pool.allocate(4)
    for block in (first, second, third):
        pool.mark_indexed(block)
    for block in (second, plain, third, first):
        pool.release(block)
    pool.allocate(2)
    assert evicted == [], "plain free blocks go first"
    pool.allocate(1)
    assert evicted == [second]
    pool.share(third)
    pool.release(third)
    pool.allocate(1)
    assert evicted == [second, first], "a new use makes a block young again"
    pool.allocate(1)
    assert evicted == [second, first, third]
    assert not any(pool.is_indexed(block) for block in range(5))
    pool.check_integrity()


def test_unmarking_a_cached_free_block_makes_it_plain() -> None:
    evicted: list[int] = []
    pool = BlockPool(1, on_evict=evicted.append)
    (block,) = pool.allocate(1)
    pool.mark_indexed(block)
    pool.release(block)
    pool.unmark_indexed(block)
    pool.check_integrity()
    assert pool.allocate(1) == [block] and evicted == []


def test_misuse_is_caught() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="not indexed"):
        pool.unmark_indexed(block)
    pool.mark_indexed(block)
    with pytest.raises(AssertionError, match="indexed twice"):
        pool.mark_indexed(block)
    pool.unmark_indexed(block)
    pool.release(block)
    with pytest.raises(AssertionError, match="more often than taken"):
        pool.release(block)
    with pytest.raises(AssertionError, match="nothing to share"):
        pool.share(block)
    with pytest.raises(AssertionError, match="nobody holds"):
        pool.mark_indexed(block)


@pytest.mark.parametrize("damage", ["leak", "twice", "held", "negative", "unmarked"])
def test_check_integrity_notices_damage(damage: str) -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    pool.mark_indexed(blocks[0])
    pool.release(blocks[0])
    pool.release(blocks[1])
    pool.check_integrity()
    if damage == "leak":
        pool._plain_free.pop()
    elif damage == "twice":
        pool._plain_free.append(pool._plain_free[0])
    elif damage == "held":
        pool._plain_free.append(blocks[2])
    elif damage == "negative":
        pool._counts[blocks[1]] = -1
    else:
        pool._indexed[blocks[0]] = False
    with pytest.raises(AssertionError):
        pool.check_integrity()


def test_thousands_of_operations_leak_nothing() -> None:
    rng = random.Random(0)
    evicted: list[int] = []
    pool = BlockPool(16, on_evict=evicted.append)
    held: list[int] = []
    for _ in range(5000):
        action = rng.randrange(4)
        if action == 0 and pool.num_free:
            held += pool.allocate(rng.randint(1, pool.num_free))
        elif action == 1 and held:
            block = rng.choice(held)
            pool.share(block)
            held.append(block)
        elif action == 2 and held:
            block = rng.choice(held)
            if not pool.is_indexed(block):
                pool.mark_indexed(block)
        else:
            for _ in range(rng.randint(0, min(4, len(held)))):
                pool.release(held.pop(rng.randrange(len(held))))
        pool.check_integrity()
        assert [held.count(block) for block in range(16)] == [
            pool.num_references(block) for block in range(16)
        ]
    assert len(evicted) > 100
    for block in held:
        pool.release(block)
    assert pool.num_free == 16

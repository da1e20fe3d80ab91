"""The cache manager: hand-made situations with an exact outcome each."""

from __future__ import annotations

import pytest

from engine.cache import CommitState, KVCacheManager, PrefixMatch


def run_prompt(
    cache: KVCacheManager, tokens: list[int], exit_layer: int = 4
) -> tuple[list[int], CommitState]:
    """Admit a prompt with whatever is cached, "compute" it all but its last token, commit."""
    match = cache.match(tokens, exit_layer, len(tokens) - 1)
    blocks = cache.admit(match, len(tokens))
    assert blocks is not None
    state = cache.commit_state(match)
    cache.commit(blocks, tokens, len(tokens) - 1, exit_layer, state)
    cache.check_integrity()
    return blocks, state


def test_a_second_request_shares_the_complete_blocks() -> None:
    cache = KVCacheManager(8, 2)
    first, _ = run_prompt(cache, [1, 2, 3, 4, 5])
    second, _ = run_prompt(cache, [1, 2, 3, 4, 5])
    assert len(first) == len(second) == 3
    assert first[:2] == second[:2] and first[2] != second[2]
    assert (cache.num_free, cache.usage_ratio) == (4, 0.5)
    assert (cache.num_queried_tokens, cache.num_hit_tokens) == (8, 4)
    cache.free(first)
    assert first == [] and cache.num_free == 5
    cache.free(second)
    assert (cache.num_free, cache.num_indexed, cache.usage_ratio) == (8, 2, 0.0)
    cache.check_integrity()


def test_a_match_never_covers_the_last_known_token() -> None:
    cache = KVCacheManager(8, 2)
    blocks, _ = run_prompt(cache, [1, 2, 3, 4, 5])
    assert cache.match([1, 2, 3, 4], 4, 3).blocks == (blocks[0],)


def test_matching_changes_nothing_and_counts_nothing() -> None:
    cache = KVCacheManager(3, 2)
    blocks, _ = run_prompt(cache, [1, 2, 3])
    cache.free(blocks)
    for _ in range(3):
        match = cache.match([1, 2, 3], 4, 2)
        assert match.num_tokens == 2
    assert (cache.num_free, cache.num_queried_tokens) == (3, 2)


def test_depth_decides_hits_and_a_deeper_block_replaces() -> None:
    cache = KVCacheManager(8, 2)
    shallow, _ = run_prompt(cache, [1, 2, 3], exit_layer=2)
    deep, _ = run_prompt(cache, [1, 2, 3], exit_layer=4)
    assert shallow[0] != deep[0], "shallower is a miss"
    assert cache.match([1, 2, 3], 2, 2).blocks == (deep[0],), "deeper replaced, and serves"
    cache.free(shallow)
    cache.free(deep)
    assert (cache.num_free, cache.num_indexed) == (8, 1), "the displaced block is plain free"
    again, _ = run_prompt(cache, [1, 2, 3], exit_layer=2)
    assert again[0] not in shallow, "a shallower request takes the deep block"
    assert cache.match([1, 2, 3], 4, 2).num_tokens == 2, "and does not make it shallow"


def test_a_block_displaced_while_held_is_plain_once_released() -> None:
    cache = KVCacheManager(3, 2)
    shallow, _ = run_prompt(cache, [1, 2], exit_layer=2)
    state = CommitState()
    cache.commit(shallow, [1, 2], 2, 2, state)
    deep, _ = run_prompt(cache, [1, 2, 3], exit_layer=4)
    assert cache.num_indexed == 1
    cache.free(shallow)
    cache.free(deep)
    fillers = cache.admit(PrefixMatch(), 4)
    assert fillers is not None and cache.num_free == 1
    assert cache.match([1, 2, 3], 4, 2).num_tokens == 2, "two plain blocks went first"
    cache.check_integrity()


def test_duplicate_content_stays_private() -> None:
    cache = KVCacheManager(8, 2)
    tokens = [1, 2, 3, 4, 5]
    tables = [cache.admit(PrefixMatch(), 5), cache.admit(PrefixMatch(), 5)]
    for blocks in tables:
        assert blocks is not None
        cache.commit(blocks, tokens, 4, 4, CommitState())
        cache.check_integrity()
    first, second = tables
    assert first is not None and second is not None
    assert cache.match(tokens, 4, 4).blocks == tuple(first[:2])
    cache.assert_writable(second, 0)
    with pytest.raises(AssertionError, match="prefix cache"):
        cache.assert_writable(first, 0)
    cache.assert_writable(first, 4)


def test_the_tail_of_a_sequence_is_evicted_before_its_head() -> None:
    cache = KVCacheManager(4, 2)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    blocks, state = run_prompt(cache, tokens)
    cache.commit(blocks, tokens, 8, 4, state)
    cache.free(blocks)
    held: list[int] = []
    for num_left in (3, 2, 1, 0):
        assert cache.grow(held, 2 * (4 - num_left))
        assert len(cache.match(tokens, 4, 8).blocks) == num_left
        cache.check_integrity()
    assert not cache.grow(held, 10) and len(held) == 4


def test_eviction_takes_the_sequence_released_first() -> None:
    cache = KVCacheManager(4, 2)
    old, _ = run_prompt(cache, [1, 2, 3])
    young, _ = run_prompt(cache, [4, 5, 6])
    cache.free(young)
    cache.free(old)
    assert cache.admit(PrefixMatch(), 6) is not None
    assert cache.match([4, 5, 6], 4, 2).num_tokens == 0
    assert cache.match([1, 2, 3], 4, 2).num_tokens == 2


def test_admit_counts_matched_cached_free_blocks_once() -> None:
    cache = KVCacheManager(4, 2)
    blocks, _ = run_prompt(cache, [1, 2, 3, 4, 5])
    cache.free(blocks)
    assert cache.grow(blocks, 2)
    match = cache.match([1, 2, 3, 4, 5], 4, 4)
    assert (len(match.blocks), cache.num_free) == (2, 3), "both matched blocks are cached-free"
    # Three free, two of them matched: one new block can be had, not two.
    assert cache.admit(match, 7) is None
    assert (cache.num_free, cache.num_hit_tokens, cache.num_indexed) == (3, 0, 2)
    cache.check_integrity()
    admitted = cache.admit(match, 6)
    assert admitted is not None and tuple(admitted[:2]) == match.blocks
    assert (cache.num_free, cache.num_hit_tokens) == (0, 4)
    cache.check_integrity()


def test_an_out_of_date_match_is_refused() -> None:
    cache = KVCacheManager(2, 2)
    blocks, _ = run_prompt(cache, [1, 2, 3])
    cache.free(blocks)
    match = cache.match([1, 2, 3], 4, 2)
    assert cache.grow(blocks, 4)
    cache.free(blocks)
    with pytest.raises(AssertionError, match="out of date"):
        cache.admit(match, 3)


def test_grow_and_trim_keep_exactly_what_is_needed() -> None:
    cache = KVCacheManager(4, 2)
    blocks = cache.admit(PrefixMatch(), 3)
    assert blocks is not None and len(blocks) == 2
    table = blocks
    assert cache.grow(blocks, 4) and len(blocks) == 2
    assert cache.grow(blocks, 7) and len(blocks) == 4
    assert not cache.grow(blocks, 9) and len(blocks) == 4
    cache.trim(blocks, 5)
    assert len(blocks) == 3 and cache.num_free == 1
    assert cache.grow(blocks, 1) and len(blocks) == 3, "growing never shortens"
    cache.trim(blocks, 0)
    assert blocks == [] and cache.num_free == 4 and table is blocks
    cache.check_integrity()


def test_trim_refuses_shared_and_indexed_blocks() -> None:
    cache = KVCacheManager(6, 2)
    first, _ = run_prompt(cache, [1, 2, 3])
    with pytest.raises(AssertionError, match="prefix cache"):
        cache.trim(first, 0)
    second, _ = run_prompt(cache, [1, 2, 3])
    with pytest.raises(AssertionError, match="shared"):
        cache.trim(second, 0)
    assert len(first) == len(second) == 2 and cache.num_free == 3


def test_commit_indexes_complete_accepted_blocks_only() -> None:
    cache = KVCacheManager(4, 2)
    tokens = [1, 2, 3, 4, 5]
    blocks = cache.admit(PrefixMatch(), 5)
    assert blocks is not None
    state = CommitState()
    for num_full, num_indexed in ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)):
        cache.commit(blocks, tokens, num_full, 4, state)
        assert (cache.num_indexed, state.num_blocks) == (num_indexed, num_indexed)
    with pytest.raises(AssertionError, match="accepted"):
        cache.commit(blocks, tokens, 6, 4, state)
    with pytest.raises(AssertionError, match="rolled back"):
        cache.commit(blocks, tokens, 3, 4, state)


def test_matched_blocks_are_not_hashed_again() -> None:
    hashed: list[tuple[int, ...]] = []

    def counting(parent_hash: int, tokens: tuple[int, ...]) -> int:
        hashed.append(tokens)
        return hash((parent_hash, tokens))

    cache = KVCacheManager(8, 2, hash_block=counting)
    run_prompt(cache, [1, 2, 3, 4, 5, 6, 7])
    match = cache.match([1, 2, 3, 4, 8, 8, 8], 4, 6)
    blocks = cache.admit(match, 7)
    assert blocks is not None
    hashed.clear()
    cache.commit(blocks, [1, 2, 3, 4, 8, 8, 8], 6, 4, cache.commit_state(match))
    assert hashed == [(8, 8)]


def test_a_chain_whose_head_was_evicted_is_indexed_anew() -> None:
    """Two compute the same block; the one that is indexed goes, the other's tail lives on."""
    cache = KVCacheManager(5, 2)
    tokens = [1, 2, 3, 4, 5, 6]
    gone = cache.admit(PrefixMatch(), 2)
    kept = cache.admit(PrefixMatch(), 6)
    assert gone is not None and kept is not None
    state = CommitState()
    cache.commit(gone, tokens, 2, 4, CommitState())
    cache.commit(kept, tokens, 4, 4, state)
    assert cache.match(tokens, 4, 6).blocks == (gone[0], kept[1])
    head = gone[0]
    cache.free(gone)
    fillers: list[int] = []
    assert cache.grow(fillers, 4) and head in fillers
    assert cache.num_indexed == 0, "the tail cannot be reached without its head"
    cache.check_integrity()
    cache.commit(kept, tokens, 6, 4, state)
    assert cache.match(tokens, 4, 6).blocks == tuple(kept)
    cache.check_integrity()


def test_caching_can_be_switched_off() -> None:
    cache = KVCacheManager(4, 2, enable_prefix_caching=False)
    blocks, state = run_prompt(cache, [1, 2, 3, 4, 5])
    assert cache.match([1, 2, 3, 4, 5], 4, 4) == PrefixMatch()
    assert (cache.num_indexed, cache.num_queried_tokens, state) == (0, 0, CommitState())
    cache.free(blocks)
    assert cache.num_free == 4


def test_check_integrity_notices_a_disagreement() -> None:
    cache = KVCacheManager(4, 2)
    blocks, _ = run_prompt(cache, [1, 2, 3])
    cache._index.drop(blocks[0])
    with pytest.raises(AssertionError, match="disagree"):
        cache.check_integrity()


def test_a_shared_block_is_indexed_anew_by_its_shallower_holder_first() -> None:
    manager = KVCacheManager(8, 4)
    prefix = [1, 2, 3, 4]

    def admit(tokens: list[int], exit_layer: int, num_tokens: int) -> tuple[list[int], CommitState]:
        match = manager.match(tokens, exit_layer, len(tokens) - 1)
        blocks = manager.admit(match, num_tokens)
        assert blocks is not None
        return blocks, manager.commit_state(match)

    first, first_state = admit([*prefix, 5], 8, 5)
    manager.commit(first, [*prefix, 5], 4, 8, first_state)
    manager.free(first)
    shallow, shallow_state = admit([*prefix, 5], 6, 6)
    deep, deep_state = admit([*prefix, 6], 8, 6)
    assert shallow[0] == deep[0]
    # A deeper block takes the shared one's place in the index, and is evicted.
    deepest, deepest_state = admit([*prefix, 7], 12, 6)
    manager.commit(deepest, [*prefix, 7], 4, 12, deepest_state)
    manager.free(deepest)
    pressure: list[int] = []
    assert manager.grow(pressure, 4 * manager.num_free)
    manager.free(pressure)
    assert manager.num_indexed == 0

    manager.grow(shallow, 9)
    manager.commit(shallow, [*prefix, 5, 9, 9, 9], 8, 6, shallow_state)
    assert not manager.match([*prefix, 0], 8, 4).blocks
    manager.grow(deep, 9)
    manager.commit(deep, [*prefix, 6, 8, 8, 8], 8, 8, deep_state)
    manager.check_integrity()
    assert manager.match([*prefix, 0], 8, 4).blocks == (deep[0],)
    assert manager.match([*prefix, 6, 8, 8, 8, 0], 8, 8).num_tokens == 8

"""Gumbel noise as a pure function of seed, position and token id.

Counter-based: nothing is drawn from a stream, so draft and target, or the same request in
another batch, see the same noise at the same position. The generator is Philox4x32-10 (Salmon,
Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011; constants and test
vectors as in the authors' Random123). One block yields four 32-bit words, for four neighbouring
token ids.
"""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from engine.types import SEED_LIMIT

NUM_ROUNDS = 10
NUM_LANES = 4
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

WORD_BITS = np.uint64(32)
WORD_MASK = np.uint64(0xFFFFFFFF)

MIN_NOISE = -3.2
"""Below the noise of word 0, the least there is; the greatest is 22.87."""

JSON_SEED_BITS = 53
"""Integers so wide survive a client that reads every JSON number as a double."""

Words = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]
"""The four 32-bit words of some blocks, each held in 64 bits; they broadcast together."""


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10 of each counter under one key of two 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        # Words that all counters share stay of length one until they mix with others, which
        # makes the first three rounds of `gumbel` nearly free.
        even, odd = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (odd >> WORD_BITS) ^ c1 ^ np.uint64(k0), odd & WORD_MASK
        c2, c3 = (even >> WORD_BITS) ^ c3 ^ np.uint64(k1), even & WORD_MASK
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The 32 random bits behind the noise of the token `ids` at an absolute `position`.

    Word id % 4 of the Philox block with counter (position, id // 4, 0, 0) and the seed, modulo
    2⁶⁴, as key, low word first. No block is computed twice, and few that hold none of the ids.
    """
    if not len(ids):
        return np.empty(0, dtype=np.uint32)
    first, last = int(ids.min()) >> 2, int(ids.max()) >> 2
    if last - first < 2 * len(ids):
        # Dense: a few blocks too many cost less than finding out which are needed.
        blocks = np.arange(first, last + 1)
        where = ids - NUM_LANES * first
    else:
        blocks, rows = np.unique(ids >> 2, return_inverse=True)
        where = NUM_LANES * rows + (ids & 3)

    zero = np.zeros(1, dtype=np.uint64)
    counter = (zero + np.uint64(position), blocks.astype(np.uint64), zero, zero)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    computed = np.empty((len(blocks), NUM_LANES), dtype=np.uint32)
    for lane, word in enumerate(philox4x32(counter, key)):
        computed[:, lane] = word
    return computed.ravel().take(where)


def from_words(x: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Standard Gumbel noise of random words: g = −log(−log(u)) with u = (x + 0.5) / 2³²."""
    return -np.log(-np.log((x + 0.5) * 2.0**-32))


def lowest_word(noise: float) -> int:
    """A word below which every word's noise is less than `noise`; may be 2³², above all words.

    Low by up to two words, so that rounding here or in `from_words` never makes it too high.
    """
    if noise < MIN_NOISE:
        return 0
    return max(0, math.floor(math.exp(-math.exp(-noise)) * 2.0**32) - 1)


def gumbel(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel noise of the token `ids` at an absolute `position`; as long as `ids`.

    An id's value is the same bit for bit whichever other ids are asked for.
    """
    return from_words(words(seed, position, ids))


def choice_seed(seed: int, index: int) -> int:
    """The seed of choice `index` of a request: its own for choice 0, else a fixed 53-bit hash.

    The hash is output number `index` of SplitMix64 started at `seed` (Steele, Lea, Flood: "Fast
    Splittable Pseudorandom Number Generators", OOPSLA 2014), cut to its low 53 bits. A choice
    thus replays alone, sent as a request of its own with this seed.
    """
    if index == 0:
        return seed
    mixed = (seed + index * 0x9E3779B97F4A7C15) % SEED_LIMIT
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % SEED_LIMIT
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % SEED_LIMIT
    return (mixed ^ (mixed >> 31)) & ((1 << JSON_SEED_BITS) - 1)


def draw_seed(rng: random.Random) -> int:
    """A seed for a request that brings none: 53 bits, so that any client can send it back."""
    return rng.getrandbits(JSON_SEED_BITS)

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from engine.sampling import choice_seed, draw_seed, gumbel
from engine.sampling.noise import from_words, lowest_word, philox4x32, words

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


def block(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in counter)
    return [int(word[0]) for word in philox4x32((c0, c1, c2, c3), key)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """The kat_vectors of Random123 for philox4x32-10."""
    assert block(counter, key) == list(expected)


@pytest.mark.parametrize("seed", [0, 1, 0x299F31D0A4093822, (1 << 64) - 1, 0xDEADBEEF << 32])
def test_word_layout(seed: int) -> None:
    ids = np.array([0, 1, 2, 3, 4, 5, 6, 7, 50_256, 128_003])
    expected = [block((77, int(i) // 4, 0, 0), (seed & ONES, seed >> 32))[int(i) % 4] for i in ids]
    assert words(seed, 77, ids).tolist() == expected
    uniform = [(x + 0.5) / 2**32 for x in expected]
    np.testing.assert_allclose(
        gumbel(seed, 77, ids), [-math.log(-math.log(u)) for u in uniform], rtol=1e-12
    )


def test_negative_seeds_are_taken_modulo_two_to_the_64() -> None:
    ids = np.arange(9)
    assert np.array_equal(gumbel(-1, 3, ids), gumbel((1 << 64) - 1, 3, ids))
    assert np.array_equal(gumbel(-(1 << 63), 3, ids), gumbel(1 << 63, 3, ids))


def test_noise_does_not_depend_on_the_other_ids() -> None:
    everything = gumbel(11, 5, np.arange(50_257))
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 3, 5, 17, 50, 1000, 20_000):
        for subset in (
            np.sort(rng.choice(50_257, size, replace=False)),
            rng.choice(50_257, size),
            np.arange(size) + 30_001,
        ):
            assert gumbel(11, 5, subset).tobytes() == everything[subset].tobytes()


def test_seeds_positions_and_ids_all_matter() -> None:
    ids = np.arange(1000)
    rows = [gumbel(seed, position, ids) for seed in (0, 1, 1 << 32) for position in (0, 1, 4)]
    assert len(np.unique(np.concatenate(rows))) == 1000 * len(rows)
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 0.15  # 4.7 standard errors


def test_noise_is_gumbel_distributed() -> None:
    values = np.concatenate([gumbel(2024, position, np.arange(2000)) for position in range(20)])
    assert stats.kstest(values, "gumbel_r").pvalue > 0.01


def test_extreme_words_give_finite_noise() -> None:
    least, greatest = from_words(np.array([0, ONES], dtype=np.uint32))
    assert -3.131 < least < -3.129
    assert 22.8 < greatest < 22.9


@pytest.mark.parametrize("noise", [-50.0, -3.2, -3.13, -1.0, 0.0, 2.5, 10.0, 20.0, 22.8, 22.9, 1e9])
def test_lowest_word_never_cuts_too_much(noise: float) -> None:
    lowest = lowest_word(noise)
    if lowest > 0:
        below = np.array([lowest - 1], dtype=np.uint32)
        assert from_words(below)[0] < noise
    if lowest + 2 <= ONES:
        above = np.array([lowest + 2], dtype=np.uint32)
        assert from_words(above)[0] >= noise
    if noise > 22.88:
        assert lowest >= ONES - 1


def test_choice_seeds() -> None:
    assert choice_seed(-5, 0) == -5
    assert choice_seed(2**63, 0) == 2**63
    # The reference SplitMix64's first outputs for this seed.
    outputs = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    for index, output in enumerate(outputs, start=1):
        assert choice_seed(1234567, index) == output % 2**53
    assert choice_seed(-1, 3) == choice_seed(2**64 - 1, 3)
    seeds = [choice_seed(seed, index) for seed in range(100) for index in range(1, 100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**53 and int(float(seed)) == seed for seed in seeds)


def test_drawn_seeds_come_from_the_generator_and_fit_a_double() -> None:
    seeds = [draw_seed(random.Random(7)) for _ in range(2)]
    assert seeds[0] == seeds[1]
    rng = random.Random(8)
    many = [draw_seed(rng) for _ in range(1000)]
    assert all(0 <= seed < 2**53 for seed in many)
    assert len(set(many)) == 1000
    assert max(many) > 2**52

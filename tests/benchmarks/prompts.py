"""Prompts of random token ids, the same for every system."""

from __future__ import annotations

import numpy as np


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """`count` prompts of `length` ids below 8,192, where a draft vocabulary has its ids."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, min(vocab_size, 8192), size=(count, length)).tolist()

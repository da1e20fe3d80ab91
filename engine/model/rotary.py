"""Rotary positions: the angles that every backend turns by."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engine.config import ModelConfig, RopeScaling


def rotary_angles(config: ModelConfig) -> NDArray[np.float64]:
    """Positions × head_dim / 2: by how much each pair of elements is turned at each position."""
    halves = np.arange(0, config.head_dim, 2, dtype=np.float64)
    frequencies = config.rope_theta ** (-halves / config.head_dim)
    if config.rope_scaling is not None:
        frequencies = _stretched(frequencies, config.rope_scaling)
    positions = np.arange(config.max_position_embeddings, dtype=np.float64)
    return positions[:, None] * frequencies


def _stretched(frequencies: NDArray[np.float64], scaling: RopeScaling) -> NDArray[np.float64]:
    """Llama 3's scaling: long wavelengths by `factor`, short ones not, a blend between."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(blend, 0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies

"""Random weights of a model whose greedy text is a hash of its context, tensor by tensor.

Linears are uniform trits with scales that keep a unit-variance input at unit variance, times a
gain. What layers from the draft exit on add to the residual is multiplied by the *residual
scale*: the smaller it is, the more often the exit's most likely token is the full model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.names import (
    EMBEDDING,
    LINEARS,
    LM_HEAD,
    expected_shapes,
    is_linear,
    linear_name,
    linear_shape,
)
from engine.checkpoint.tensor_file import FloatTag
from engine.checkpoint.ternary import BLOCK_INPUTS, INTERLEAVE, packed_shape
from engine.config import ModelConfig
from engine.evaluation.synthetic.vocabulary import frequent_ids

Progress = Callable[[int, int], None]

_TRIT_VARIANCE = 2.0 / 3.0
_GAINS: Mapping[str, float] = {
    # Attention scores of standard deviation 4: a head looks at few tokens, and the text depends
    # on each token of its context. With gains of 1 it looks at all of them, and greedy text loops.
    "q_proj": 2.0,
    "k_proj": 2.0,
    # SwiGLU of unit-variance inputs has a standard deviation of 0.6.
    "down_proj": 1.5,
}
_ADDS_TO_RESIDUAL = ("o_proj", "down_proj")
_LOGIT_DEVIATION = 8.0
"""Of the ids that are written: greedy tokens then have a mean probability around 0.7."""
_DAMPING = 0.25
"""Of the other ids' logits: none of those is ever the most likely."""
_CHUNK_ROWS = 1024
_CODES = np.array(
    [a | b << 2 | c << 4 | d << 6 for a, b, c, d in product(range(3), repeat=4)], dtype=np.uint8
)
"""Every byte that holds four codes 0, 1 or 2."""


class SyntheticWeights:
    """A `PackedSource` of random tensors that follow from `seed`, whatever the others are.

    Layers from `draft_exit` on add `residual_scale` times as much as the others.
    `progress(done, total)` is told the bytes made. Raises `ValueError` for linears that do not
    fill whole blocks of the packed layout: their codes would need padding.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int,
        draft_exit: int,
        residual_scale: float,
        progress: Progress = lambda done, total: None,
    ) -> None:
        for linear in LINEARS:
            outputs, inputs = linear_shape(config, linear)
            if outputs % INTERLEAVE or inputs % BLOCK_INPUTS:
                raise ValueError(f"{linear} of {outputs} × {inputs} does not fill whole blocks")
        self.config = config
        shapes = expected_shapes(config)
        self._keys = {name: (seed, index) for index, name in enumerate(shapes)}
        self._scales = linear_scales(config, draft_exit, residual_scale)
        self._progress = progress
        self._done = 0
        self._total = sum(self._num_bytes(name, shape) for name, shape in shapes.items())

    def float_tag(self, name: str) -> FloatTag:
        """Half precision for the embedding and the head."""
        return "F16" if name in (EMBEDDING, LM_HEAD) else "F32"

    def packed_linear(self, layer: int, linear: str) -> tuple[NDArray[np.uint8], np.float32]:
        """Codes of uniform trits, and their scale."""
        name = linear_name(layer, linear)
        shape = packed_shape(linear_shape(self.config, linear))
        drawn = self._rng(name).integers(0, len(_CODES), size=shape, dtype=np.uint8)
        self._advance(drawn.nbytes)
        return _CODES.take(drawn), np.float32(self._scales[name])

    def float_chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """Normal rows of the embedding and the head; gains of 1 for a norm."""
        config = self.config
        if name not in (EMBEDDING, LM_HEAD):
            yield np.ones(config.hidden_size, dtype="<f4")
            self._advance(4 * config.hidden_size)
            return
        rng = self._rng(name)
        deviations_V = np.ones(config.vocab_size, dtype=np.float32)
        if name == LM_HEAD:
            # A normed residual has length √hidden.
            deviations_V *= np.float32(_LOGIT_DEVIATION / math.sqrt(config.hidden_size))
            frequent = frequent_ids(config.vocab_size)
            deviations_V[: frequent.start] *= np.float32(_DAMPING)
            deviations_V[frequent.stop :] *= np.float32(_DAMPING)
        for start in range(0, config.vocab_size, _CHUNK_ROWS):
            deviations_N = deviations_V[start : start + _CHUNK_ROWS]
            rows_ND = rng.standard_normal((len(deviations_N), config.hidden_size), np.float32)
            halves_ND = (rows_ND * deviations_N[:, None]).astype("<f2")
            yield halves_ND
            self._advance(halves_ND.nbytes)

    def _num_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        if is_linear(name):
            return math.prod(packed_shape(shape))
        return math.prod(shape) * (2 if self.float_tag(name) == "F16" else 4)

    def _rng(self, name: str) -> np.random.Generator:
        """A stream of each tensor's own: what one draws moves no other."""
        return np.random.Generator(np.random.SFC64(self._keys[name]))

    def _advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        self._progress(self._done, self._total)


def linear_scales(config: ModelConfig, draft_exit: int, residual_scale: float) -> dict[str, float]:
    """Canonical name → scale of every linear."""
    scales = {}
    for layer in range(config.num_layers):
        for linear in LINEARS:
            _, inputs = linear_shape(config, linear)
            scale = _GAINS.get(linear, 1.0) / math.sqrt(_TRIT_VARIANCE * inputs)
            if layer >= draft_exit and linear in _ADDS_TO_RESIDUAL:
                scale *= residual_scale
            scales[linear_name(layer, linear)] = scale
    return scales

"""What a backend asks of a checkpoint; a loaded one satisfies it, and so can tests."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.config import ModelConfig


class TernaryTensor(Protocol):
    """One ternary linear: `scale` × `trits`."""

    @property
    def trits(self) -> NDArray[np.int8]:
        """outputs × inputs, each −1, 0 or +1."""
        ...

    @property
    def scale(self) -> np.float32: ...


class WeightSource(Protocol):
    """A checkpoint's tensors, by canonical name."""

    @property
    def config(self) -> ModelConfig: ...

    def linear(self, layer: int, linear: str, /) -> TernaryTensor:
        """One of a layer's ternary linears, by its name in `names.LINEARS`.

        A dense model's are float tensors, by `names.linear_name`.
        """
        ...

    def tensor(self, name: str, /) -> NDArray[np.floating]:
        """A float tensor by its canonical name."""
        ...

"""What a checkpoint's tensors hold, looked at one by one, so that memory stays small."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.names import expected_shapes, linear_places
from engine.checkpoint.ternary import packed_shape
from engine.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""

_SCALE_BYTES = 4


class Trits(NamedTuple):
    """How many ternary weights are −1, 0 and +1."""

    num_minus: int
    num_zero: int
    num_plus: int

    def shares(self) -> tuple[float, float, float]:
        """The same as parts of one; there must be a weight."""
        total = sum(self)
        return self.num_minus / total, self.num_zero / total, self.num_plus / total


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor. What could not be read (see `error`) is None."""

    name: str
    """Canonical."""
    stored_name: str
    """As the file spells it."""
    layer: int | None
    kind: str
    """The canonical name with `*` for the layer's number."""
    shape: tuple[int, ...]
    dtype: str
    """In the file; u8 for packed linears."""
    num_bytes: int
    """In the file; a packed linear's scale counted."""
    packed_bytes: int | None
    """What `bitskip pack` makes of it; None in dense models, which it does not pack."""
    unpacked_bytes: int
    """As float32."""
    is_ternary: bool
    trits: Trits | None
    """Of ternary linears."""
    scale: float | None
    """Of ternary linears."""
    largest: float | None
    """Greatest magnitude of a float tensor."""
    smallest: float | None
    """Least magnitude above zero of a float tensor; 0 where there is none."""
    error: str | None
    """Why it cannot be used."""


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """All tensors of a checkpoint, in the model's order."""

    is_packed: bool
    tensors: tuple[TensorReport, ...]
    ignored: tuple[str, ...]
    """Names in the files that the model has no use for."""

    @property
    def ternary(self) -> tuple[TensorReport, ...]:
        """The ternary linears: all linears, or none."""
        return tuple(tensor for tensor in self.tensors if tensor.is_ternary)


def inspect_weights(
    checkpoint: Checkpoint, progress: Progress = lambda done, total: None
) -> WeightsReport:
    """Read every tensor once; one that cannot be used is reported, not raised."""
    ternary = {} if checkpoint.config.is_dense else linear_places(checkpoint.config)
    shapes = expected_shapes(checkpoint.config)
    total = sum(map(checkpoint.stored_size, shapes))
    done, tensors = 0, []
    for name, shape in shapes.items():
        tensors.append(_report(checkpoint, name, shape, ternary.get(name)))
        done += checkpoint.stored_size(name)
        progress(done, total)
    checkpoint.release_pages()
    return WeightsReport(checkpoint.is_packed, tuple(tensors), checkpoint.ignored)


def total_trits(tensors: tuple[TensorReport, ...]) -> Trits | None:
    """The counts of several tensors together; None if none could be counted."""
    counted = [tensor.trits for tensor in tensors if tensor.trits is not None]
    return Trits(*map(sum, zip(*counted, strict=True))) if counted else None


def _report(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], place: tuple[int, str] | None
) -> TensorReport:
    trits = scale = largest = smallest = error = None
    try:
        if place is not None:
            weight = checkpoint.linear(*place)
            minus, plus = (
                int(np.count_nonzero(weight.trits == sign)) for sign in (np.int8(-1), np.int8(1))
            )
            trits = Trits(minus, weight.trits.size - minus - plus, plus)
            scale = float(weight.scale)
        else:
            largest, smallest = _magnitudes(checkpoint.float_chunks(name))
    except CheckpointError as problem:
        error = str(problem)
    stored = checkpoint.stored_size(name)
    packed = None if checkpoint.config.is_dense else stored
    if place is not None:
        packed = math.prod(packed_shape(shape)) + _SCALE_BYTES
        stored += _SCALE_BYTES if checkpoint.is_packed else 0
    parts = name.split(".")
    layer = int(parts[1]) if parts[0] == "layers" else None
    return TensorReport(
        name=name,
        stored_name=checkpoint.stored_name(name),
        layer=layer,
        kind=name if layer is None else ".".join(("layers", "*", *parts[2:])),
        shape=shape,
        dtype=checkpoint.stored_dtype(name),
        num_bytes=stored,
        packed_bytes=packed,
        unpacked_bytes=4 * math.prod(shape),
        is_ternary=place is not None,
        trits=trits,
        scale=scale,
        largest=largest,
        smallest=smallest,
        error=error,
    )


def _magnitudes(chunks: Iterator[NDArray[Any]]) -> tuple[float, float]:
    """The greatest magnitude, and the least above zero; 0 where there is none."""
    largest, smallest = 0.0, math.inf
    for values in chunks:
        magnitudes = np.abs(values)
        largest = max(largest, float(magnitudes.max()))
        smallest = min(smallest, float(magnitudes.min(where=magnitudes > 0, initial=np.inf)))
    return largest, smallest if largest else 0.0

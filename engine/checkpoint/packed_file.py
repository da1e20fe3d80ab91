"""Write a packed `model.safetensors`, whatever its tensors come from, and change its scales.

The header comes first, since all sizes follow from the configuration; then one tensor at a time
is asked for and written, so that memory is bounded by what the source hands out at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.inventory import SCALE_SUFFIX, packed_metadata
from engine.checkpoint.names import (
    LINEARS,
    expected_shapes,
    is_linear,
    linear_name,
    linear_shape,
)
from engine.checkpoint.tensor_file import FloatTag, TensorFile
from engine.checkpoint.tensor_writer import PlannedTensor, write_tensor_file
from engine.checkpoint.ternary import packed_shape
from engine.config import ModelConfig


class PackedSource(Protocol):
    """Where the tensors of a packed file come from; each is asked for once, in file order."""

    @property
    def config(self) -> ModelConfig: ...

    def float_tag(self, name: str, /) -> FloatTag:
        """The dtype in which a float tensor is to be stored, as safetensors spells it."""
        ...

    def packed_linear(self, layer: int, linear: str, /) -> tuple[NDArray[np.uint8], np.float32]:
        """A linear's codes, as `pack_trits` makes them, and its scale."""
        ...

    def float_chunks(self, name: str, /) -> Iterable[NDArray[Any]]:
        """A float tensor's elements in order, in the dtype of `float_tag`, by pieces."""
        ...


def write_packed_file(file: Path, source: PackedSource) -> int:
    """Write every tensor of `source` to a new file, and to the disk; returns its bytes."""
    linears = [(layer, linear) for layer in range(source.config.num_layers) for linear in LINEARS]
    codes, rest = _plan_codes(source.config, linears), _plan_rest(source)

    def pieces() -> Iterator[NDArray[Any]]:
        scales: list[np.float32] = []
        for layer, linear in linears:
            packed, scale = source.packed_linear(layer, linear)
            yield packed
            scales.append(scale)
        for tensor in rest:
            yield from source.float_chunks(tensor.name)
        yield np.asarray(scales, dtype="<f4")

    plan = [*codes, *rest, *_plan_scales(linears)]
    return write_tensor_file(file, plan, pieces(), packed_metadata())


def overwrite_scales(file: Path, scales: Mapping[str, float]) -> None:
    """Give linears, by canonical name, other scales, in place: a few bytes of a large file.

    Whoever has the file open reads the new ones from then on. Raises `KeyError` for a linear
    that the file lacks, before anything is changed.
    """
    entries = TensorFile(file).entries
    places = [(entries[name + SCALE_SUFFIX].start, scale) for name, scale in scales.items()]
    with file.open("r+b") as stream:
        for start, scale in places:
            stream.seek(start)
            stream.write(np.asarray([scale], dtype="<f4").data)


def _plan_codes(config: ModelConfig, linears: list[tuple[int, str]]) -> list[PlannedTensor]:
    return [
        PlannedTensor(linear_name(*where), "U8", packed_shape(linear_shape(config, where[1])))
        for where in linears
    ]


def _plan_rest(source: PackedSource) -> list[PlannedTensor]:
    plan = [
        PlannedTensor(name, source.float_tag(name), shape)
        for name, shape in expected_shapes(source.config).items()
        if not is_linear(name)
    ]
    # Wide elements first, so that every tensor is aligned to its element and can be mapped.
    return sorted(plan, key=lambda tensor: tensor.tag != "F32")


def _plan_scales(linears: list[tuple[int, str]]) -> list[PlannedTensor]:
    return [PlannedTensor(linear_name(*where) + SCALE_SUFFIX, "F32", (1,)) for where in linears]

"""Write a packed `model.safetensors`, whatever its tensors come from, and change its scales.

The header comes first, since all sizes follow from the configuration; then one tensor at a time
is asked for and written, so that memory is bounded by what the source hands out at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

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
from engine.checkpoint.tensor_file import LENGTH_BYTES, TensorFile
from engine.checkpoint.ternary import packed_shape
from engine.config import ModelConfig

ALIGNMENT = 64
"""Bytes: the data section, and with it every linear's codes, begins on a cache line."""

FloatTag = Literal["F32", "F16", "BF16"]


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


@dataclass(frozen=True, slots=True)
class _Output:
    """One tensor of the file to be written."""

    name: str
    tag: str
    shape: tuple[int, ...]
    num_bytes: int


def write_packed_file(file: Path, source: PackedSource) -> int:
    """Write every tensor of `source` to a new file, and to the disk; returns its bytes."""
    linears = [(layer, linear) for layer in range(source.config.num_layers) for linear in LINEARS]
    codes, rest = _plan_codes(source.config, linears), _plan_rest(source)
    scales: list[np.float32] = []
    with file.open("wb") as stream:
        stream.write(_header([*codes, *rest, *_plan_scales(linears)]))
        for layer, linear in linears:
            packed, scale = source.packed_linear(layer, linear)
            stream.write(packed.data)
            scales.append(scale)
        for output in rest:
            for values in source.float_chunks(output.name):
                stream.write(values.data)
        stream.write(np.asarray(scales, dtype="<f4").data)
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell()


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


def _plan_codes(config: ModelConfig, linears: list[tuple[int, str]]) -> list[_Output]:
    plan = []
    for layer, linear in linears:
        shape = packed_shape(linear_shape(config, linear))
        plan.append(_Output(linear_name(layer, linear), "U8", shape, math.prod(shape)))
    return plan


def _plan_rest(source: PackedSource) -> list[_Output]:
    plan = []
    for name, shape in expected_shapes(source.config).items():
        if not is_linear(name):
            tag = source.float_tag(name)
            plan.append(_Output(name, tag, shape, math.prod(shape) * (4 if tag == "F32" else 2)))
    # Wide elements first, so that every tensor is aligned to its element and can be mapped.
    return sorted(plan, key=lambda output: output.tag != "F32")


def _plan_scales(linears: list[tuple[int, str]]) -> list[_Output]:
    return [_Output(linear_name(*where) + SCALE_SUFFIX, "F32", (1,), 4) for where in linears]


def _header(outputs: list[_Output]) -> bytes:
    """Length and JSON of a safetensors header, padded so that the data begins aligned."""
    entries: dict[str, Any] = {"__metadata__": packed_metadata()}
    end = 0
    for output in outputs:
        begin, end = end, end + output.num_bytes
        entries[output.name] = {
            "dtype": output.tag,
            "shape": list(output.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text

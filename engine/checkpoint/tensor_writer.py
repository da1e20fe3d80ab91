"""Write a safetensors file tensor by tensor: the header first, since all sizes are known."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engine.checkpoint.tensor_file import LENGTH_BYTES, numpy_dtype

ALIGNMENT = 64
"""Bytes: the data section begins on a cache line."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of a file to be written."""

    name: str
    tag: str
    """The dtype as safetensors spells it: F32, F16, BF16 or U8."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * numpy_dtype(self.tag).itemsize


def write_tensor_file(
    file: Path,
    plan: Sequence[PlannedTensor],
    pieces: Iterable[NDArray[Any]],
    metadata: Mapping[str, str],
) -> int:
    """Write a new file, and to the disk; returns its bytes.

    `pieces` are the tensors' elements, in the order of `plan`, cut anywhere; bfloat16 as its bits.
    """
    with file.open("wb") as stream:
        stream.write(_header(plan, metadata))
        for piece in pieces:
            stream.write(piece.data)
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell()


def _header(plan: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded so that the data begins aligned."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in plan:
        begin, end = end, end + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.tag,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text

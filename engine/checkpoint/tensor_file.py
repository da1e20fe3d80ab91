"""One safetensors file: its header, and its tensors by memory map or by reads.

The safetensors library validates (truncation, garbage, overlapping offsets); the bytes are
read here, because its numpy side knows no bfloat16 and copies what could be mapped.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from engine.checkpoint.ternary import FloatDtype
from engine.errors import CheckpointError

LENGTH_BYTES = 8
"""A safetensors file opens with its header's length, little-endian."""
CHUNK_BYTES = 4 << 20
"""Long tensors are checked and copied in pieces of this size."""

_CHECKED_BYTES = 128 << 10
"""Values are checked in pieces that stay in a core's cache."""

FloatTag = Literal["F32", "F16", "BF16"]
"""A float's dtype as safetensors spells it."""
FLOAT_TAGS: dict[FloatDtype, FloatTag] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Our names of the float dtypes, and safetensors'."""

_NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "|u1"}
_SPECIAL: dict[str, tuple[type[np.uint16] | type[np.uint32], int]] = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""Unsigned integer of a float's size, and the bits of its infinity."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a header says of one tensor."""

    name: str
    """As spelt in the file."""
    tag: str
    """The dtype as safetensors spells it: F32, BF16 …"""
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte within the file."""
    num_bytes: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the stored elements; bfloat16 appears as its 16 bits."""
        return numpy_dtype(self.tag)


def numpy_dtype(tag: str) -> np.dtype[Any]:
    """The numpy dtype of elements of a safetensors dtype; bfloat16 appears as its 16 bits."""
    return np.dtype(_NUMPY_DTYPES[tag])


class TensorFile:
    """A validated safetensors file. Opening one reads the header alone."""

    def __init__(self, path: Path) -> None:
        """Raises `CheckpointError`, naming the file, if it is missing, cut short or garbage."""
        self.path = path
        try:
            with safe_open(path, framework="numpy") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
            with path.open("rb") as file:
                self.entries = _read_entries(path, file)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(f"{path}: cannot be read ({reason})") from error
        self._map: mmap.mmap | None = None

    def map(self, entry: TensorEntry) -> NDArray[Any]:
        """The tensor as a read-only view of the mapped file (a copy where it is misaligned)."""
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not entry.num_bytes:
            return np.empty(entry.shape, entry.dtype)
        data = np.frombuffer(self._map, np.uint8, entry.num_bytes, entry.start)
        flat = data.view(entry.dtype)
        # Files of other writers may start their data at any byte.
        return np.require(flat.reshape(entry.shape), requirements="A")

    def read(self, entry: TensorEntry) -> NDArray[Any]:
        """A copy of the tensor, read from the file: for values that are used once."""
        (values,) = self.chunks(entry, max(entry.num_bytes, 1))
        return values.reshape(entry.shape)

    def chunks(self, entry: TensorEntry, chunk_bytes: int = CHUNK_BYTES) -> Iterator[NDArray[Any]]:
        """The elements in order, as copies of at most `chunk_bytes`."""
        step = max(1, chunk_bytes // entry.dtype.itemsize)
        remaining = entry.num_bytes // entry.dtype.itemsize
        with self.path.open("rb") as file:
            file.seek(entry.start)
            while remaining:
                values = np.empty(min(step, remaining), dtype=entry.dtype)
                if file.readinto(values.view(np.uint8).data) != values.nbytes:
                    raise CheckpointError(f"{self.path}: cut short while it was being read")
                remaining -= values.size
                yield values

    def release_pages(self) -> None:
        """Let the system have the memory of what was read; it is read again when needed."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the map; arrays that were handed out keep theirs."""
        self._map = None


def all_finite(values: NDArray[Any], tag: str) -> bool:
    """Whether stored values hold neither NaN nor infinity, looking at one piece at a time."""
    bits, first_special = _SPECIAL[tag]
    flat = values.reshape(-1).view(bits)
    step = _CHECKED_BYTES // values.dtype.itemsize
    # Without its sign bit a float's bits are ordered as its magnitude is, NaN above infinity.
    magnitude = bits(np.iinfo(bits).max >> 1)
    for start in range(0, flat.size, step):
        if (flat[start : start + step] & magnitude).max() >= first_special:
            return False
    return True


def widen(values: NDArray[Any], tag: str) -> NDArray[Any]:
    """Stored values as numpy floats: bfloat16 becomes float32, exactly; others stay as they are."""
    if tag != "BF16":
        return values
    wide = values.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def narrow(values: NDArray[np.float32], tag: str) -> NDArray[Any]:
    """Floats as elements to be stored, ties to even; what is too large becomes infinite.

    bfloat16 appears as its 16 bits.
    """
    if tag != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(numpy_dtype(tag), copy=False)
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + (np.uint32(0x7FFF) + odd)) >> np.uint32(16)).astype("<u2")


def _read_entries(path: Path, file: BinaryIO) -> dict[str, TensorEntry]:
    """Name in the file → entry, from a header that the library has found sound."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    data_start = LENGTH_BYTES + length

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise CheckpointError(f"{path}: the header names {', '.join(twice)} twice")
        return result

    header = json.loads(file.read(length), object_pairs_hook=refuse_duplicates)
    header.pop("__metadata__", None)
    entries = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        entries[name] = TensorEntry(
            name, info["dtype"], tuple(info["shape"]), data_start + begin, end - begin
        )
    return entries

"""Open a checkpoint, latent (Hugging Face) or packed, and read its tensors one at a time.

Everything that headers can tell is checked on opening, and reported in one error; values are
checked when a tensor is read. Names are canonical throughout (`engine.checkpoint.names`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.files import weight_files
from engine.checkpoint.inventory import (
    Inventory,
    StoredTensor,
    is_packed_file,
    latent_inventory,
    packed_inventory,
)
from engine.checkpoint.names import EMBEDDING, LM_HEAD, linear_name, linear_shape
from engine.checkpoint.tensor_file import FLOAT_TAGS, TensorFile, all_finite, widen
from engine.checkpoint.ternary import (
    FloatDtype,
    apply_scale,
    check_codes,
    measure_scale,
    unpack_trits,
)
from engine.config import ModelConfig
from engine.errors import CheckpointError

StoredDtype = Literal["fp32", "fp16", "bf16", "u8"]

_FLOAT_DTYPES: dict[str, FloatDtype] = {tag: dtype for dtype, tag in FLOAT_TAGS.items()}
_SCALE_TOLERANCE = 2.0**-8
"""How far a stored scale may lie from the tensor's own: one rounding to bfloat16."""


@dataclass(frozen=True, slots=True)
class TernaryWeight:
    """One ternary linear: it computes with scale · trits."""

    trits: NDArray[np.int8]
    """Outputs × inputs, each −1, 0 or +1."""
    scale: np.float32


@dataclass(frozen=True, slots=True)
class PackedTernary:
    """The same in the packed layout (`engine.checkpoint.ternary`)."""

    codes: NDArray[np.uint8]
    """Memory-mapped, [outputs / 4, inputs / 128, 4, 32], both rounded up."""
    shape: tuple[int, int]
    """(outputs, inputs), without the padding."""
    scale: np.float32


class Checkpoint(ABC):
    """An opened checkpoint. Use as a context manager, or call `close`.

    Unknown names are a `KeyError`; values that cannot be used are a `CheckpointError` that
    names the tensor.
    """

    is_packed: ClassVar[bool]

    def __init__(self, path: Path, inventory: Inventory) -> None:
        self.path = path
        self.config: ModelConfig = inventory.config
        """As in config.json, but `tie_word_embeddings` as the files have it."""
        self._tensors = inventory.tensors
        self._scales = inventory.scales
        self.ignored = tuple(tensor.entry.name for tensor in inventory.ignored)
        """Tensors that the files hold and the model has no use for, as spelt there."""
        self._closed = False

    @abstractmethod
    def linear(self, layer: int, linear: str) -> TernaryWeight:
        """One ternary linear of a layer, e.g. `linear(0, "q_proj")`.

        A dense model has none (`KeyError`): its linears are float tensors.
        """

    def tensor(self, name: str) -> NDArray[Any]:
        """A float tensor: float32 and float16 as stored, bfloat16 widened exactly to float32.

        Memory-mapped and read-only except where it had to be widened. A tied `lm_head.weight`
        is the embedding. A packed checkpoint has its linears as codes only (`KeyError`).
        """
        file, entry = self._find(name)
        if entry.tag not in _FLOAT_DTYPES:
            raise KeyError(f"{name} is packed: read it with linear()")
        values = file.map(entry)
        if not all_finite(values, entry.tag):
            raise CheckpointError(_not_finite(file, name))
        return widen(values, entry.tag)

    def stored_dtype(self, name: str) -> StoredDtype:
        """The dtype of a tensor in the file; "u8" for packed linears."""
        tag = self._find(name).entry.tag
        return _FLOAT_DTYPES.get(tag, "u8")

    def stored_name(self, name: str) -> str:
        """A tensor's name as its file spells it."""
        return self._find(name).entry.name

    def stored_size(self, name: str) -> int:
        """Bytes that a tensor takes in the file."""
        return self._find(name).entry.num_bytes

    def stored_chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """A float tensor's elements in order, as stored (bfloat16 as uint16 bits), by pieces.

        For copying what is too large to hold.
        """
        file, entry = self._find(name)
        for values in file.chunks(entry):
            if not all_finite(values, entry.tag):
                raise CheckpointError(_not_finite(file, name))
            yield values

    def float_chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """The same, bfloat16 widened exactly to float32."""
        tag = self._find(name).entry.tag
        return (widen(values, tag) for values in self.stored_chunks(name))

    def release_pages(self) -> None:
        """Give the memory of mapped tensors back; they are read again where they are used."""
        for file, _ in self._tensors.values():
            file.release_pages()

    def close(self) -> None:
        """Stop reading. Arrays that were handed out stay valid. May be called twice."""
        self._closed = True
        for file, _ in self._tensors.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _find(self, name: str) -> StoredTensor:
        if self._closed:
            raise ValueError(f"{self.path}: the checkpoint was closed")
        if name == LM_HEAD and self.config.tie_word_embeddings:
            name = EMBEDDING
        return self._tensors[name]


class LatentCheckpoint(Checkpoint):
    """A Hugging Face directory of float weights, ternarised as they are read, or dense."""

    is_packed = False

    def linear(self, layer: int, linear: str) -> TernaryWeight:
        """Ternarise one linear; what config.json and stored scales claim of it must be true."""
        name = linear_name(layer, linear)
        if self.config.is_dense:
            raise KeyError(f"{name} is dense: read it with tensor()")
        file, entry = self._find(name)
        dtype = _FLOAT_DTYPES[entry.tag]
        place = f"{file.path}: {name}"
        weight = widen(file.read(entry), entry.tag)
        scale, was_ternary = measure_scale(weight, dtype=dtype, name=place)
        if self.config.weights == "ternary" and not was_ternary:
            raise CheckpointError(
                f"{place}: holds more than -s, 0 and +s, though config.json calls the weights "
                "ternary"
            )
        trits = apply_scale(weight, scale, dtype=dtype)
        if was_ternary and name in self._scales and trits.any():
            self._compare_scale(place, self._scales[name], scale)
        return TernaryWeight(trits, scale)

    @staticmethod
    def _compare_scale(place: str, stored: StoredTensor, scale: np.float32) -> None:
        """Beside ternary weights a stored scale means something: refuse one that says otherwise.

        (±1 with the scale, or its reciprocal, kept apart would be served wrongly in silence.)
        """
        entry = stored.entry
        if entry.tag not in _FLOAT_DTYPES or entry.num_bytes != entry.dtype.itemsize:
            raise CheckpointError(
                f"{stored.file.path}: {entry.name}: found {entry.tag} {list(entry.shape)}, "
                "expected one float"
            )
        claimed = float(widen(stored.file.read(entry), entry.tag).reshape(-1)[0])
        if not abs(claimed - float(scale)) <= _SCALE_TOLERANCE * float(scale):
            raise CheckpointError(
                f"{place}: holds only 0 and ±{float(scale):g}, but {entry.name} is {claimed:g}"
            )


class PackedCheckpoint(Checkpoint):
    """A directory that `pack_checkpoint` wrote."""

    is_packed = True

    def linear(self, layer: int, linear: str) -> TernaryWeight:
        """Unpack one linear."""
        packed = self.packed_linear(layer, linear)
        return TernaryWeight(unpack_trits(packed.codes, packed.shape), packed.scale)

    def packed_linear(self, layer: int, linear: str) -> PackedTernary:
        """The codes of one linear, straight from the mapped file, and its scale."""
        name = linear_name(layer, linear)
        file, entry = self._find(name)
        codes = file.map(entry)
        shape = linear_shape(self.config, linear)
        try:
            check_codes(codes, shape)
        except ValueError as error:
            raise CheckpointError(f"{file.path}: {name}: {error}") from error
        stored = self._scales[name]
        scale = np.float32(stored.file.read(stored.entry)[0])
        if not (np.isfinite(scale) and scale > 0):
            raise CheckpointError(
                f"{file.path}: {stored.entry.name}: must be a positive number, not {scale}"
            )
        return PackedTernary(codes, shape, scale)


def load_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint directory: a `PackedCheckpoint` or a `LatentCheckpoint`.

    Reads headers only. Raises `CheckpointError` that names the file at fault (missing, cut
    short, not safetensors, a pickle, a packed version not known), or lists every tensor that is
    unmapped, duplicate, missing, wrongly shaped or of an unsupported dtype.
    """
    paths = weight_files(path)
    config = ModelConfig.from_directory(path)
    files = [TensorFile(file) for file in paths]
    if is_packed_file(files[0]):
        return PackedCheckpoint(path, packed_inventory(path, config, files[0]))
    return LatentCheckpoint(path, latent_inventory(path, config, files))


def _not_finite(file: TensorFile, name: str) -> str:
    return f"{file.path}: {name}: holds NaN or infinite values"

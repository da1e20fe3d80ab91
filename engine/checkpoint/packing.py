"""Write a packed checkpoint: ternary linears as 2-bit codes, everything else as it is.

The header comes first, since all sizes are known from the source's header; then one tensor at
a time is read, converted and written, so that memory is bounded by the largest linear.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.files import WEIGHTS_FILE
from engine.checkpoint.inventory import SCALE_SUFFIX, packed_metadata
from engine.checkpoint.loader import Checkpoint, load_checkpoint
from engine.checkpoint.names import (
    EMBEDDING,
    LINEARS,
    LM_HEAD,
    expected_shapes,
    is_linear,
    linear_name,
    linear_shape,
)
from engine.checkpoint.tensor_file import LENGTH_BYTES, widen
from engine.checkpoint.ternary import pack_trits, packed_shape
from engine.errors import CheckpointError

ALIGNMENT = 64
"""Bytes: the data section, and with it every linear's codes, begins on a cache line."""

COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "README.md",
)
"""Taken along where the source has them."""

_TAGS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What packing did."""

    path: Path
    num_linears: int
    source_bytes: int
    """Tensor data in the source."""
    packed_bytes: int
    """Size of the packed `model.safetensors`."""
    num_minus: int
    num_zero: int
    num_plus: int
    """How many ternary weights are −1, 0 and +1."""


@dataclass(frozen=True, slots=True)
class _Output:
    """One tensor of the file to be written."""

    name: str
    tag: str
    shape: tuple[int, ...]
    num_bytes: int


def pack_checkpoint(
    source: Path,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    dtype: Literal["keep", "fp16"] = "keep",
) -> PackSummary:
    """Pack the latent checkpoint in `source` into the new directory `out`.

    `progress(done, total)` is told the bytes of source data consumed so far. `dtype="fp16"`
    stores the embedding and the head in half precision; norms always keep theirs. `out` appears
    only when it is complete; an empty directory of that name is filled. Raises `CheckpointError`
    for a source that cannot be used or is packed already, values that do not fit in fp16, and an
    `out` that is not empty; `OSError` when writing fails or somebody else made `out` meanwhile.
    """
    with load_checkpoint(source) as checkpoint:
        if checkpoint.is_packed:
            raise CheckpointError(f"{source}: is a packed checkpoint already")
        _refuse_occupied(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        # An existing directory may be a mount point, which can be filled but not replaced.
        into_existing = out.exists()
        staging = (out if into_existing else out.parent) / f".{out.name}.{uuid.uuid4().hex}.partial"
        staging.mkdir()
        try:
            summary = _Packer(checkpoint, dtype, progress).write(staging / WEIGHTS_FILE, out)
            _write_config(checkpoint, staging)
            _copy_side_files(source, staging)
            if into_existing:
                _move_up(staging, out)
            else:
                staging.rename(out)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return summary


class _Packer:
    """Writes one packed safetensors file."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: Literal["keep", "fp16"],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._half = dtype == "fp16"
        self._progress = progress
        self._done = 0
        self._total = sum(map(checkpoint.stored_size, expected_shapes(checkpoint.config)))
        self._trits = np.zeros(3, dtype=np.int64)

    def write(self, file: Path, out: Path) -> PackSummary:
        """Write the file; `out` is where the summary says that it will be."""
        linears = [
            (layer, linear)
            for layer in range(self._checkpoint.config.num_layers)
            for linear in LINEARS
        ]
        codes, rest = self._plan_codes(linears), self._plan_rest()
        scales: list[np.float32] = []
        with file.open("wb") as stream:
            stream.write(_header([*codes, *rest, *self._plan_scales(linears)]))
            for layer, linear in linears:
                scales.append(self._write_linear(stream, layer, linear))
            for output in rest:
                self._write_rest(stream, output)
            stream.write(np.asarray(scales, dtype="<f4").data)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        minus, zero, plus = (int(count) for count in self._trits)
        return PackSummary(out, len(linears), self._total, size, minus, zero, plus)

    def _plan_codes(self, linears: list[tuple[int, str]]) -> list[_Output]:
        plan = []
        for layer, linear in linears:
            shape = packed_shape(linear_shape(self._checkpoint.config, linear))
            plan.append(_Output(linear_name(layer, linear), "U8", shape, math.prod(shape)))
        return plan

    def _plan_rest(self) -> list[_Output]:
        plan = []
        for name, shape in expected_shapes(self._checkpoint.config).items():
            if not is_linear(name):
                half = self._half and name in (EMBEDDING, LM_HEAD)
                tag = "F16" if half else _TAGS[self._checkpoint.stored_dtype(name)]
                size = math.prod(shape) * (4 if tag == "F32" else 2)
                plan.append(_Output(name, tag, shape, size))
        # Wide elements first, so that every tensor is aligned to its element and can be mapped.
        return sorted(plan, key=lambda output: output.tag != "F32")

    def _plan_scales(self, linears: list[tuple[int, str]]) -> list[_Output]:
        return [_Output(linear_name(*where) + SCALE_SUFFIX, "F32", (1,), 4) for where in linears]

    def _write_linear(self, stream: BinaryIO, layer: int, linear: str) -> np.float32:
        weight = self._checkpoint.linear(layer, linear)
        minus, plus = np.count_nonzero(weight.trits < 0), np.count_nonzero(weight.trits > 0)
        self._trits += (minus, weight.trits.size - minus - plus, plus)
        stream.write(pack_trits(weight.trits).data)
        self._advance(self._checkpoint.stored_size(linear_name(layer, linear)))
        return weight.scale

    def _write_rest(self, stream: BinaryIO, output: _Output) -> None:
        convert = output.tag != _TAGS[self._checkpoint.stored_dtype(output.name)]
        for values in self._checkpoint.stored_chunks(output.name):
            stream.write((self._to_half(output.name, values) if convert else values).data)
            self._advance(values.nbytes)

    def _to_half(self, name: str, values: NDArray[Any]) -> NDArray[np.float16]:
        tag = _TAGS[self._checkpoint.stored_dtype(name)]
        with np.errstate(over="ignore"):
            half = widen(values, tag).astype("<f2")
        if not np.all(np.isfinite(half)):
            raise CheckpointError(
                f"{self._checkpoint.path}: {name}: holds values too large for fp16"
            )
        return half

    def _advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


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


def _refuse_occupied(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file; the packed checkpoint needs a directory")
    if out.exists() and (first := next(iter(sorted(out.iterdir())), None)) is not None:
        raise CheckpointError(
            f"{out}: is not empty (it holds {first.name}); nothing is overwritten"
        )


def _write_config(checkpoint: Checkpoint, directory: Path) -> None:
    """The source's config.json, every key kept, with what packing settled put right."""
    raw = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    raw["weights"] = "ternary"
    raw["tie_word_embeddings"] = checkpoint.config.tie_word_embeddings
    text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def _copy_side_files(source: Path, directory: Path) -> None:
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def _move_up(staging: Path, out: Path) -> None:
    """Move files out of a staging directory; the weights go last, and complete the checkpoint."""
    for file in sorted(staging.iterdir(), key=lambda file: file.name == WEIGHTS_FILE):
        file.rename(out / file.name)
    staging.rmdir()

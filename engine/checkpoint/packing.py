"""Pack a checkpoint: ternary linears as 2-bit codes, everything else as it is.

One tensor at a time is read, converted and written, so that memory is bounded by the largest
linear.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.files import WEIGHTS_FILE
from engine.checkpoint.loader import Checkpoint, load_checkpoint
from engine.checkpoint.names import EMBEDDING, LM_HEAD, expected_shapes, linear_name
from engine.checkpoint.packed_file import write_packed_file
from engine.checkpoint.staging import staged_directory
from engine.checkpoint.tensor_file import FLOAT_TAGS, FloatTag, widen
from engine.checkpoint.ternary import pack_trits
from engine.config import PACKED_MODEL_TYPE
from engine.errors import CheckpointError

COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "draft_vocab.json",
    "README.md",
)
"""Taken along where the source has them."""


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
    for a source that cannot be used, is packed already or is dense, values that do not fit in
    fp16, and an `out` that is not empty; `OSError` when writing fails or somebody else made `out`
    meanwhile.
    """
    with load_checkpoint(source) as checkpoint:
        if checkpoint.is_packed:
            raise CheckpointError(f"{source}: is a packed checkpoint already")
        if checkpoint.config.is_dense:
            raise CheckpointError(
                f"{source}: its weights are dense, and only ternary ones can be packed: serve it "
                "as it is"
            )
        packer = _Packer(checkpoint, dtype, progress)
        with staged_directory(out) as staging:
            packed_bytes = write_packed_file(staging / WEIGHTS_FILE, packer)
            _write_config(checkpoint, staging)
            copy_side_files(source, staging)
    return packer.summary(out, packed_bytes)


class _Packer:
    """Converts a checkpoint's tensors as the writer asks for them, and keeps count."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: Literal["keep", "fp16"],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        self._half = dtype == "fp16"
        self._progress = progress
        self._done = 0
        self._total = sum(map(checkpoint.stored_size, expected_shapes(checkpoint.config)))
        self._num_linears = 0
        self._trits = np.zeros(3, dtype=np.int64)

    def float_tag(self, name: str) -> FloatTag:
        if self._half and name in (EMBEDDING, LM_HEAD):
            return "F16"
        return self._stored_tag(name)

    def packed_linear(self, layer: int, linear: str) -> tuple[NDArray[np.uint8], np.float32]:
        weight = self._checkpoint.linear(layer, linear)
        minus, plus = np.count_nonzero(weight.trits < 0), np.count_nonzero(weight.trits > 0)
        self._num_linears += 1
        self._trits += (minus, weight.trits.size - minus - plus, plus)
        self._advance(self._checkpoint.stored_size(linear_name(layer, linear)))
        return pack_trits(weight.trits), weight.scale

    def float_chunks(self, name: str) -> Iterator[NDArray[Any]]:
        convert = self.float_tag(name) != self._stored_tag(name)
        for values in self._checkpoint.stored_chunks(name):
            yield self._to_half(name, values) if convert else values
            self._advance(values.nbytes)

    def summary(self, out: Path, packed_bytes: int) -> PackSummary:
        minus, zero, plus = (int(count) for count in self._trits)
        return PackSummary(out, self._num_linears, self._total, packed_bytes, minus, zero, plus)

    def _stored_tag(self, name: str) -> FloatTag:
        dtype = self._checkpoint.stored_dtype(name)
        assert dtype != "u8", name
        return FLOAT_TAGS[dtype]

    def _to_half(self, name: str, values: NDArray[Any]) -> NDArray[np.float16]:
        with np.errstate(over="ignore"):
            half = widen(values, self._stored_tag(name)).astype("<f2")
        if not np.all(np.isfinite(half)):
            raise CheckpointError(
                f"{self._checkpoint.path}: {name}: holds values too large for fp16"
            )
        return half

    def _advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _write_config(checkpoint: Checkpoint, directory: Path) -> None:
    """The source's config.json, every key kept, with what packing settled put right."""
    raw = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    # The numerics are spelt out, and no longer told by a model_type that names float weights.
    raw |= {"model_type": PACKED_MODEL_TYPE, **checkpoint.config.linear_fields()}
    raw["weights"] = "ternary"
    raw["tie_word_embeddings"] = checkpoint.config.tie_word_embeddings
    text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def copy_side_files(source: Path, directory: Path) -> None:
    """Take along what a checkpoint's directory holds beside weights and configuration."""
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)

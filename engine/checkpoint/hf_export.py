"""Write a checkpoint as a Hugging Face directory of float weights, which transformers loads.

Ternary linears become −s, 0 and +s, and config.json calls them ternary, so that they are read
back as the same codes and scales. Latent linears keep the dtype that they are stored in:
another would ternarise differently. Everything else is written in the dtype that was asked for.

Tensors pass one at a time, so that memory is bounded by the largest linear.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.files import WEIGHTS_FILE
from engine.checkpoint.loader import Checkpoint, TernaryWeight, load_checkpoint
from engine.checkpoint.names import expected_shapes, linear_places, published_name
from engine.checkpoint.packing import copy_side_files
from engine.checkpoint.staging import staged_directory
from engine.checkpoint.tensor_file import FLOAT_TAGS, all_finite, narrow
from engine.checkpoint.tensor_writer import PlannedTensor, write_tensor_file
from engine.checkpoint.ternary import FloatDtype, measure_scale, round_to
from engine.config import ModelConfig
from engine.errors import CheckpointError

_TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, slots=True)
class HfExportSummary:
    """What an export did."""

    path: Path
    num_bytes: int
    """Size of `model.safetensors`."""
    weights: str
    """What config.json says of the linears: latent, ternary or dense."""
    scale_error: float
    """How far a ternary linear's scale was moved by rounding to the dtype, relative, at most."""


def export_huggingface(
    source: Path,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    dtype: FloatDtype = "fp32",
) -> HfExportSummary:
    """Write the checkpoint in the directory `source`, latent or packed, as the directory `out`.

    `progress(done, total)` is told the bytes written so far. `out` appears only when it is
    complete; an empty directory of that name is filled. Raises `CheckpointError` for a source
    that cannot be used, values too large or scales too small for `dtype`, and an `out` that is
    not empty; `OSError` when writing fails or somebody else made `out` meanwhile.
    """
    with load_checkpoint(source) as checkpoint, staged_directory(out) as staging:
        exporter = _Exporter(checkpoint, dtype, progress)
        num_bytes = exporter.write(staging / WEIGHTS_FILE)
        weights = exporter.weights
        _write_json(staging / "config.json", _config(checkpoint, weights, dtype))
        copy_side_files(source, staging)
        if not (staging / _GENERATION_CONFIG).exists():
            _write_json(staging / _GENERATION_CONFIG, _generation_config(checkpoint.config))
    return HfExportSummary(out, num_bytes, weights, exporter.scale_error)


class _Exporter:
    """Converts a checkpoint's tensors as they are written, and keeps count."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: FloatDtype,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.scale_error = 0.0
        self._checkpoint = checkpoint
        self._dtype: FloatDtype = dtype
        self._progress = progress
        self._ternary = {} if checkpoint.config.is_dense else linear_places(checkpoint.config)
        self._all_ternary = True

    @property
    def weights(self) -> str:
        """What the linears that were written are."""
        if self._checkpoint.config.is_dense:
            return "dense"
        return "ternary" if self._all_ternary else "latent"

    def write(self, file: Path) -> int:
        """Write every tensor; returns the file's bytes."""
        shapes = expected_shapes(self._checkpoint.config)
        tags = {name: self._tag(name) for name in shapes}
        # Wide elements first, so that every tensor is aligned to its element and can be mapped.
        names = sorted(shapes, key=lambda name: tags[name] != "F32")
        plan = [PlannedTensor(published_name(name), tags[name], shapes[name]) for name in names]
        pieces = self._pieces(names, sum(tensor.num_bytes for tensor in plan))
        return write_tensor_file(file, plan, pieces, {"format": "pt"})

    def _tag(self, name: str) -> str:
        if name not in self._ternary or self._checkpoint.config.weights != "latent":
            return FLOAT_TAGS[self._dtype]
        return FLOAT_TAGS[self._latent_dtype(name)]

    def _pieces(self, names: list[str], total: int) -> Iterator[NDArray[Any]]:
        done = 0
        for name in names:
            for piece in self._tensor(name):
                yield piece
                done += piece.nbytes
                if self._progress is not None:
                    self._progress(done, total)

    def _tensor(self, name: str) -> Iterator[NDArray[Any]]:
        if name not in self._ternary:
            for values in self._checkpoint.float_chunks(name):
                yield self._narrowed(name, values)
        elif self._checkpoint.config.weights == "ternary":
            weight = self._checkpoint.linear(*self._ternary[name])
            yield narrow(weight.trits * self._rounded(name, weight), FLOAT_TAGS[self._dtype])
        else:
            yield from self._latent(name)

    def _latent(self, name: str) -> Iterator[NDArray[Any]]:
        """A linear as it is stored; whether it happens to be ternary is noted."""
        values, dtype = self._checkpoint.tensor(name), self._latent_dtype(name)
        self._all_ternary &= measure_scale(values, dtype=dtype, name=name).was_ternary
        yield from self._checkpoint.stored_chunks(name)

    def _latent_dtype(self, name: str) -> FloatDtype:
        dtype = self._checkpoint.stored_dtype(name)
        assert dtype != "u8", name
        return dtype

    def _rounded(self, name: str, weight: TernaryWeight) -> np.float32:
        with np.errstate(over="ignore"):
            rounded = round_to(float(weight.scale), self._dtype)
        if not 0 < rounded < np.inf:
            raise CheckpointError(
                f"{self._checkpoint.path}: {name}: its scale {weight.scale:g} does not fit in "
                f"{self._dtype}"
            )
        moved = abs(float(rounded) / float(weight.scale) - 1.0)
        self.scale_error = max(self.scale_error, moved)
        return rounded

    def _narrowed(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        stored = narrow(values.astype(np.float32, copy=False), FLOAT_TAGS[self._dtype])
        if not all_finite(stored, FLOAT_TAGS[self._dtype]):
            raise CheckpointError(
                f"{self._checkpoint.path}: {name}: holds values too large for {self._dtype}"
            )
        return stored


def _config(checkpoint: Checkpoint, weights: str, dtype: FloatDtype) -> dict[str, Any]:
    """The source's config.json with what the export settled put right."""
    raw = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    config = checkpoint.config
    # The code that it names is not taken along, and would not be run.
    raw.pop("auto_map", None)
    raw.pop("torch_dtype", None)
    raw |= {
        "model_type": config.model_type,
        "dtype": _TORCH_NAMES[dtype],
        "weights": weights,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return raw | config.linear_fields()


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    fields = config.to_dict()
    names = ("bos_token_id", "eos_token_id")
    return {name: fields[name] for name in names if fields[name] is not None}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")

"""Write a checkpoint as GGUF, so that llama.cpp runs the weights that this project serves.

The model becomes one of architecture "llama". Its linears are TQ2_0: the trits are exact, and
the scale, a float32 here, is rounded to fp16, by at most 2⁻¹¹ of itself (from 2⁻¹⁴ on). Exact
factors beside the linears (tensors named `.scale`) would load in recent llama.cpp alone and add
an operation per linear. Tried on the demo model (6,200 positions), they left its agreement with
our own engine at 98.9 % and the mean difference of logprobs at 0.015: what differs comes from
llama.cpp's other roundings. The embedding and the head are Q8_0, norms float32.

A TQ2_0 block holds the codes of 256 inputs as two of our blocks of 128 (`ternary`), bit for
bit, and then the scale. So packed codes are only put in order of rows, never unpacked.

Tensors pass one at a time; the largest thing in memory is the finished Q8_0 head.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from engine.checkpoint.gguf_tokenizer import add_tokenizer
from engine.checkpoint.loader import Checkpoint, PackedCheckpoint, load_checkpoint
from engine.checkpoint.names import (
    EMBEDDING,
    LM_HEAD,
    expected_shapes,
    is_linear,
    linear_name,
    linear_places,
    published_name,
)
from engine.checkpoint.ternary import pack_trits
from engine.config import ModelConfig
from engine.errors import CheckpointError

TERNARY_BLOCK = 256
"""Inputs that share a scale in TQ2_0."""
_CODE_BYTES = TERNARY_BLOCK // 4
_LARGEST_Q8_0 = 127 * float(np.finfo(np.float16).max)
_Q8_0_WIDTH = 8192
"""Values that gguf should see as one row: it goes through 16 rows at a time in Python."""

_ROTARY = ("q_proj", "k_proj")


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export did."""

    path: Path
    num_layers: int
    num_bytes: int
    """Size of the file."""
    scale_error: float
    """How far a linear's scale was moved by rounding it to fp16, relative, at most."""


def export_gguf(
    source: Path,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    num_layers: int | None = None,
) -> ExportSummary:
    """Write the checkpoint in the directory `source`, latent or packed, as the new file `out`.

    `num_layers` keeps that many of the first layers, under the same final norm and head: the
    early-exit model, which llama.cpp can use as a draft model. `progress(done, total)` is told
    the bytes of source data consumed so far. `out` appears only when it is complete. Raises
    `CheckpointError` for a source that cannot be used, widths that TQ2_0 does not allow, values
    too large for their format, a `num_layers` that cannot be exported and an `out` that exists;
    `TokenizerError` as `add_tokenizer` does; `OSError` when writing fails.
    """
    with load_checkpoint(source) as checkpoint:
        config = _first_layers(checkpoint, num_layers)
        _refuse_variant(source, config)
        _refuse_widths(source, config)
        if out.exists():
            raise CheckpointError(f"{out}: exists already; nothing is overwritten")
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
        try:
            staging.touch(exist_ok=False)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(out)) from error
        try:
            error = _Exporter(checkpoint, config, progress).write(staging)
            num_bytes = staging.stat().st_size
            # Fails if somebody else made the file meanwhile: only our own is replaced.
            out.touch(exist_ok=False)
            staging.replace(out)
        finally:
            staging.unlink(missing_ok=True)
    return ExportSummary(out, config.num_layers, num_bytes, error)


def tq2_0(codes: NDArray[np.uint8], shape: tuple[int, int], scale: np.float16) -> NDArray[np.uint8]:
    """Packed codes of an outputs × inputs linear as rows of TQ2_0 blocks.

    Each of the inputs / 256 blocks of a row has 64 bytes of codes and 2 of `scale`
    (block_tq2_0 in llama.cpp's ggml-common.h).
    """
    outputs, inputs = shape
    blocks = np.empty((outputs, inputs // TERNARY_BLOCK, _CODE_BYTES + 2), dtype=np.uint8)
    rows = codes.transpose(0, 2, 1, 3).reshape(-1, inputs // TERNARY_BLOCK, _CODE_BYTES)
    blocks[..., :_CODE_BYTES] = rows[:outputs]
    blocks[..., _CODE_BYTES:] = np.array([scale], dtype="<f2").view(np.uint8)
    return blocks.reshape(outputs, -1)


def interleaved_rows(num_heads: int, head_dim: int) -> NDArray[np.int64]:
    """The order of q's or k's output rows that turns rotate-half into llama.cpp's rotary.

    Rotate-half turns dimensions i and i + head_dim / 2 of a head together; llama.cpp's "llama"
    turns 2i and 2i + 1. Both operands of the attention's products are reordered alike.
    """
    rows = np.arange(num_heads * head_dim).reshape(num_heads, 2, head_dim // 2)
    return rows.transpose(0, 2, 1).reshape(-1)


def _first_layers(checkpoint: Checkpoint, num_layers: int | None) -> ModelConfig:
    config = checkpoint.config
    if num_layers is None or num_layers == config.num_layers:
        return config
    if not 1 <= num_layers < config.num_layers:
        raise CheckpointError(
            f"{checkpoint.path}: has {config.num_layers} layers; {num_layers} cannot be exported"
        )
    if not config.exit_norm:
        raise CheckpointError(
            f"{checkpoint.path}: its early exits skip the final norm (exit_norm is false), which "
            "llama.cpp always applies: only all of its layers can be exported"
        )
    return replace(config, num_layers=num_layers)


def _refuse_variant(path: Path, config: ModelConfig) -> None:
    reasons = {
        "llama.cpp multiplies no Hadamard-transformed activations": config.hadamard != "none",
        "llama.cpp rounds activations to 8 bits, not to 4": config.activation_bits != 8,
        "its linears are dense, and only ternary ones are written; llama.cpp's own "
        "convert_hf_to_gguf.py writes plain Llamas": config.is_dense,
        "its rotary positions are scaled": config.rope_scaling is not None,
    }
    for reason, applies in reasons.items():
        if applies:
            raise CheckpointError(
                f"{path}: {config.variant} models cannot be exported to GGUF: {reason}"
            )


def _refuse_widths(path: Path, config: ModelConfig) -> None:
    """Refuse linears whose rows are no whole number of TQ2_0 blocks, in one error."""
    problems = [
        f"{name}: has {shape[1]} inputs"
        for name, shape in expected_shapes(replace(config, num_layers=1)).items()
        if is_linear(name) and shape[1] % TERNARY_BLOCK
    ]
    if problems:
        raise CheckpointError(
            f"{path}: TQ2_0 needs a multiple of {TERNARY_BLOCK} inputs; in every layer, as in the "
            "first:\n  " + "\n  ".join(problems)
        )


class _Exporter:
    """Writes one GGUF file."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._progress = progress
        self._shapes = expected_shapes(config)
        self._linears = linear_places(config)
        self._done = 0
        self._total = sum(map(checkpoint.stored_size, self._shapes))
        self._scale_error = 0.0

    def write(self, file: Path) -> float:
        """Write the file; returns the largest relative error of a scale."""
        writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
        try:
            _add_model(writer, self._checkpoint.path, self._config)
            add_tokenizer(writer, self._checkpoint.path, self._config)
            self._add_tensors(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name in self._shapes:
                writer.write_tensor_data(self._converted(name))
        finally:
            writer.close()
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        return self._scale_error

    def _add_tensors(self, writer: gguf.GGUFWriter) -> None:
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, self._config.num_layers)
        for name, shape in self._shapes.items():
            theirs = names.get_name(published_name(name), try_suffixes=(".weight",))
            assert theirs is not None, name
            kind = _kind(name)
            row_bytes = gguf.quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor_info(
                theirs, row_bytes, np.dtype(np.uint8), math.prod(row_bytes), raw_dtype=kind
            )

    def _converted(self, name: str) -> NDArray[Any]:
        if name in self._linears:
            return self._linear(*self._linears[name])
        if _kind(name) is GGMLQuantizationType.Q8_0:
            return self._matrix(name)
        values = self._checkpoint.tensor(name).astype(np.float32)
        self._advance(self._checkpoint.stored_size(name))
        return values

    def _linear(self, layer: int, linear: str) -> NDArray[np.uint8]:
        name = linear_name(layer, linear)
        outputs, inputs = self._shapes[name]
        if isinstance(self._checkpoint, PackedCheckpoint):
            packed = self._checkpoint.packed_linear(layer, linear)
            codes, scale = packed.codes, packed.scale
        else:
            weight = self._checkpoint.linear(layer, linear)
            codes, scale = pack_trits(weight.trits), weight.scale
        rows = tq2_0(codes, (outputs, inputs), self._rounded(name, scale))
        if linear in _ROTARY:
            head_dim = self._config.head_dim
            rows = rows[interleaved_rows(outputs // head_dim, head_dim)]
        self._advance(self._checkpoint.stored_size(name))
        return rows

    def _rounded(self, name: str, scale: np.float32) -> np.float16:
        with np.errstate(over="ignore"):
            rounded = np.float16(scale)
        if not 0 < rounded < np.inf:
            raise CheckpointError(
                f"{self._checkpoint.path}: {name}: its scale {scale:g} does not fit in fp16"
            )
        self._scale_error = max(self._scale_error, abs(float(rounded) / float(scale) - 1.0))
        return rounded

    def _matrix(self, name: str) -> NDArray[np.uint8]:
        """The embedding or the head as Q8_0, made of pieces of the source."""
        vocab_size, hidden = self._shapes[name]
        row_bytes = gguf.quant_shape_to_byte_shape((vocab_size, hidden), GGMLQuantizationType.Q8_0)
        quantised = np.empty(math.prod(row_bytes), dtype=np.uint8)
        end = 0
        for values in self._checkpoint.float_chunks(name):
            # Pieces end anywhere in a row, but always on a block, and blocks are all that counts.
            width = math.gcd(values.size, _Q8_0_WIDTH)
            rows = values.astype(np.float32).reshape(-1, width)
            if np.abs(rows).max() > _LARGEST_Q8_0:
                raise CheckpointError(
                    f"{self._checkpoint.path}: {name}: holds values too large for Q8_0"
                )
            blocks = gguf.quantize(rows, GGMLQuantizationType.Q8_0)
            quantised[end : end + blocks.size] = blocks.reshape(-1)
            end += blocks.size
            self._advance(self._checkpoint.stored_size(name) * values.size // (vocab_size * hidden))
        return quantised

    def _advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _kind(name: str) -> GGMLQuantizationType:
    if is_linear(name):
        return GGMLQuantizationType.TQ2_0
    if name in (EMBEDDING, LM_HEAD):
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType.F32


def _add_model(writer: gguf.GGUFWriter, path: Path, config: ModelConfig) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(path.resolve().name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_TQ2_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)

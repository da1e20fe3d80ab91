"""The CPU backend's Python side: arranges a checkpoint for the native model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.backends.cpu import _native
from engine.backends.protocol import Draw, Sweep, draft_vocabulary
from engine.checkpoint.loader import Checkpoint, PackedCheckpoint
from engine.checkpoint.names import (
    EMBEDDING,
    FINAL_NORM,
    LINEARS,
    LM_HEAD,
    linear_name,
    norm_names,
)
from engine.checkpoint.source import WeightSource
from engine.checkpoint.ternary import pack_trits
from engine.config import ModelConfig
from engine.errors import ConfigError
from engine.model.rotary import rotary_angles

HeadDtype = Literal["int8", "bf16", "fp32"]
DenseDtype = Literal["bf16", "int8", "fp32"]
KVDtype = Literal["fp16", "int8", "fp32"]

_MAX_THREADS = 1024
_LANES = 16
"""Rows of floats are padded to as many elements."""


class CpuBackend:
    """Runs sweeps in native code; implements `engine.backends.protocol.Backend`.

    `head_dtype` int8 rounds each head row to 8 bits with a scale of its own, and the residual to
    at most 14 bits, so that their product's sum is exact; fp32 reads the head as it is
    stored. `dense_dtype` is the same for the linears of models that are not ternary, and means
    nothing to others. `kv_dtype` is the cache's: K/V is rounded to it once, on writing.
    `threads` None means one per core that this process may use. `isa` picks an instruction set
    of `instruction_sets()`. None of these but the dtypes changes a single bit of what is
    computed. Raises `ConfigError` for values that do not exist.
    """

    name = "cpu"

    def __init__(
        self,
        checkpoint: WeightSource,
        *,
        draft_vocab_size: int,
        always_draft_ids: Sequence[int] = (),
        draft_ranking: Sequence[int] | None = None,
        threads: int | None = None,
        head_dtype: HeadDtype = "int8",
        dense_dtype: DenseDtype = "bf16",
        kv_dtype: KVDtype = "fp16",
        isa: str = "auto",
    ) -> None:
        for name, value, choices in (
            ("head_dtype", head_dtype, ("int8", "bf16", "fp32")),
            ("dense_dtype", dense_dtype, ("bf16", "int8", "fp32")),
            ("kv_dtype", kv_dtype, ("fp16", "int8", "fp32")),
            ("isa", isa, ("auto", *instruction_sets())),
        ):
            if value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        if threads is not None and not 1 <= threads <= _MAX_THREADS:
            raise ConfigError(f"threads must be between 1 and {_MAX_THREADS}, not {threads}")
        self.config = config = checkpoint.config
        self.head_dtype: str = head_dtype
        self.linear_dtype: str = dense_dtype if config.is_dense else "ternary"
        self.threads = threads or len(os.sched_getaffinity(0))
        self.kv_dtype: str = kv_dtype
        self._draft_ids = draft_vocabulary(
            config.vocab_size, draft_vocab_size, always_draft_ids, draft_ranking
        )
        self._model = _native.Model(
            layers=config.num_layers,
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            ffn=config.intermediate_size,
            vocab=config.vocab_size,
            positions=config.max_position_embeddings,
            eps=config.rms_norm_eps,
            exit_norm=config.exit_norm,
            linears=self.linear_dtype,
            activation_max=config.activation_max,
            hadamard=config.hadamard,
            threads=self.threads,
            isa=isa,
        )
        self._load(checkpoint)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._model.isa

    @property
    def description(self) -> str:
        """How it computes, for people."""
        return f"{self.isa} kernels, {self.threads} thread{'s'[: self.threads != 1]}"

    @property
    def draft_ids(self) -> NDArray[np.int64]:
        """The token ids that `draft_head` scores, ascending."""
        return self._draft_ids

    def allocate(self, num_blocks: int, block_size: int, num_states: int) -> None:
        """Make room for K/V blocks of `block_size` positions and for saved exit states.

        What earlier calls allocated is dropped. Memory becomes resident as it is used.
        """
        self._model.allocate(num_blocks, block_size, num_states, self.kv_dtype)

    def sweep(self, sweep: Sweep) -> NDArray[np.float32]:
        """Run the rows; R × hidden residuals, each at its row's `last`, before any norm.

        All saved states are read before the first layer and written after the last. Raises
        `ValueError` for a row that the protocol does not allow, and `FloatingPointError` when
        activations stop being finite.
        """
        return self._model.sweep(sweep.rows, sweep.block_tables)

    def head(
        self, residuals: NDArray[np.float32], rows: Sequence[int], depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """Full-head logits, len(rows) × V, of the residuals picked by `rows`.

        `depths[i]` is the exit layer of row i: the final norm applies as the model says.
        """
        return self._model.logits(residuals, rows, depths, False)

    def draft_head(
        self, residuals: NDArray[np.float32], rows: Sequence[int], depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """The same over the draft vocabulary only: len(rows) × len(draft_ids) logits."""
        return self._model.logits(residuals, rows, depths, True)

    def draw(
        self,
        residuals: NDArray[np.float32],
        rows: Sequence[int],
        depths: Sequence[int],
        draws: Sequence[Draw],
    ) -> list[int]:
        """Tokens picked from the full head, one per row; ties to the lowest id."""
        return self._model.pick(residuals, rows, depths, draws, False)[0]

    def draw_drafts(
        self,
        residuals: NDArray[np.float32],
        rows: Sequence[int],
        depths: Sequence[int],
        draws: Sequence[Draw],
    ) -> tuple[list[int], list[float]]:
        """The same over the draft vocabulary, and the probability of each row's likeliest id."""
        return self._model.pick(residuals, rows, depths, draws, True)

    def close(self) -> None:
        """Stop the threads and release all memory; the backend is not used afterwards."""
        self.__dict__.pop("_model", None)

    def _load(self, checkpoint: WeightSource) -> None:
        config, model = self.config, self._model
        model.set_rotary(*_rotary_tables(config))
        for layer in range(config.num_layers):
            before, after = (_floats(checkpoint.tensor(name)) for name in norm_names(layer))
            if config.is_dense:
                weights = [_padded(checkpoint.tensor(linear_name(layer, n))) for n in LINEARS]
                model.set_dense_layer(layer, before, after, weights)
                self._release(checkpoint)
            else:
                linears = [_packed(checkpoint, layer, name) for name in LINEARS]
                codes, scales = zip(*linears, strict=True)
                numbers = [float(scale) for scale in scales]
                model.set_ternary_layer(layer, before, after, list(codes), numbers)
        model.set_final_norm(_floats(checkpoint.tensor(FINAL_NORM)))
        model.set_embedding(_padded(checkpoint.tensor(EMBEDDING)))
        head = _padded(checkpoint.tensor(EMBEDDING if config.tie_word_embeddings else LM_HEAD))
        model.set_head(head, self.head_dtype)
        model.set_draft_ids(self._draft_ids.tolist())
        model.finish()
        self._release(checkpoint)

    @staticmethod
    def _release(checkpoint: WeightSource) -> None:
        """What was read has mostly been rearranged: what is left is read again where it is used."""
        if isinstance(checkpoint, Checkpoint):
            checkpoint.release_pages()


def instruction_sets() -> list[str]:
    """Instruction sets that this build has and this machine runs, best first."""
    return _native.runnable_isas()


def _packed(
    checkpoint: WeightSource, layer: int, linear: str
) -> tuple[NDArray[np.uint8], np.float32]:
    """One linear's codes, straight from the mapped file where that holds them, and its scale."""
    if isinstance(checkpoint, PackedCheckpoint):
        packed = checkpoint.packed_linear(layer, linear)
        return packed.codes, packed.scale
    weight = checkpoint.linear(layer, linear)
    return pack_trits(weight.trits), weight.scale


def _floats(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)


def _padded(rows: NDArray[Any]) -> NDArray[Any]:
    """The same rows, where they lie if possible, widened with zeros to whole lanes."""
    missing = -rows.shape[1] % _LANES
    return np.pad(rows, ((0, 0), (0, missing))) if missing else rows


def _rotary_tables(config: ModelConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(cos, sin), each positions × head_dim / 2; angles in float64, rounded once."""
    angles = rotary_angles(config)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

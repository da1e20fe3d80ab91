"""What serving a model takes, by backend, from its shape alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.checkpoint.names import LINEARS, linear_shape
from engine.config import ELEMENT_BYTES, EngineConfig, ModelConfig

_SCALE_BYTES = 4
"""int8 K/V has a scale per position and head, an int8 head one per token id."""
_TILE_OUTPUTS = 32
_BLOCK_INPUTS = 128
"""The cpu backend's ternary linears are padded to whole tiles; two bits a weight."""
_LANES = 16
"""Its dense rows are padded to so many elements."""
_FEW_SCATTERED = 256
"""Draft ids; if more of them are scattered, the cpu backend copies their rows of the head."""

BACKEND_DTYPES = {"cpu": ("int8", "fp16"), "reference": ("fp32", "fp32")}
"""What each backend holds the head and K/V in unless told otherwise."""


@dataclass(frozen=True, slots=True)
class ServingMemory:
    """Bytes that a backend with default options takes; what programs themselves take is not in."""

    backend: str
    linear_dtype: str
    weights: int
    """Linears and norms, on the reference backend the embedding too; elsewhere it stays mapped."""
    head_dtype: str
    head: int
    draft_head: int
    """Further bytes for drafting: 0 where drafts read the head's own rows."""
    kv_dtype: str
    kv: int
    """The whole K/V pool; on a CPU resident only as far as it is used."""
    num_kv_tokens: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.head + self.draft_head + self.kv


def kv_bytes(model: ModelConfig, kv_dtype: str, num_positions: int) -> int:
    """Size of a K/V pool of so many positions, over all layers."""
    scales = model.num_kv_heads * _SCALE_BYTES if kv_dtype == "int8" else 0
    per_position = model.kv_size * ELEMENT_BYTES[kv_dtype] + scales
    return 2 * model.num_layers * per_position * num_positions


def serving_memory(
    backend: str, model: ModelConfig, engine: EngineConfig, draft_ids: Sequence[int]
) -> ServingMemory:
    """What `backend` takes with its default dtypes; `engine` is resolved for the model."""
    head_dtype, kv_dtype = BACKEND_DTYPES[backend]
    is_native = backend == "cpu"
    linear_dtype = "ternary" if not model.is_dense else "bf16" if is_native else "fp32"
    shapes = [linear_shape(model, name) for name in LINEARS]
    layer = sum(_linear_bytes(*shape, linear_dtype, is_native) for shape in shapes)
    norms = (2 * model.num_layers + 1) * model.hidden_size * 4
    rows = model.vocab_size * model.hidden_size
    head = rows * ELEMENT_BYTES[head_dtype] + (model.vocab_size * _SCALE_BYTES if is_native else 0)
    embedding = draft_head = 0
    if not is_native:
        embedding, head = rows * 4, 0 if model.tie_word_embeddings else head
        if len(draft_ids) < model.vocab_size:
            draft_head = len(draft_ids) * model.hidden_size * 4
    elif _num_scattered(draft_ids) > _FEW_SCATTERED:
        draft_head = len(draft_ids) * (model.hidden_size * ELEMENT_BYTES[head_dtype] + _SCALE_BYTES)
    num_positions = engine.num_blocks * engine.block_size
    return ServingMemory(
        backend=backend,
        linear_dtype=linear_dtype,
        weights=model.num_layers * layer + norms + embedding,
        head_dtype=head_dtype,
        head=head,
        draft_head=draft_head,
        kv_dtype=kv_dtype,
        kv=kv_bytes(model, kv_dtype, num_positions),
        num_kv_tokens=num_positions,
    )


def _num_scattered(draft_ids: Sequence[int]) -> int:
    """Ascending ids beyond those that are 0, 1, 2 and so on."""
    return sum(index != place for place, index in enumerate(draft_ids))


def _linear_bytes(outputs: int, inputs: int, dtype: str, is_native: bool) -> int:
    if not is_native:
        return 4 * outputs * inputs
    if dtype != "ternary":
        return outputs * -(-inputs // _LANES) * _LANES * ELEMENT_BYTES[dtype]
    tiles, blocks = -(-outputs // _TILE_OUTPUTS), -(-inputs // _BLOCK_INPUTS)
    return tiles * _TILE_OUTPUTS * blocks * _BLOCK_INPUTS // 4

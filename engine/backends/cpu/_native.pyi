"""What `csrc/module.cpp` offers; see there for what is checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def runnable_isas() -> list[str]:
    """Instruction sets of this build and machine, best first."""

class Model:
    """Weights, K/V memory and exit states of one model, and a team of threads."""

    isa: str
    def __init__(
        self,
        *,
        layers: int,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        ffn: int,
        vocab: int,
        positions: int,
        eps: float,
        exit_norm: bool,
        linears: str,
        activation_max: int,
        hadamard: str,
        threads: int,
        isa: str,
    ) -> None: ...
    def set_ternary_layer(
        self,
        index: int,
        attention_norm: NDArray[np.float32],
        ffn_norm: NDArray[np.float32],
        codes: list[NDArray[np.uint8]],
        scales: list[float],
        /,
    ) -> None: ...
    def set_dense_layer(
        self,
        index: int,
        attention_norm: NDArray[np.float32],
        ffn_norm: NDArray[np.float32],
        weights: list[NDArray[Any]],
        /,
    ) -> None: ...
    def set_final_norm(self, gain: NDArray[np.float32], /) -> None: ...
    def set_rotary(self, cos: NDArray[np.float32], sin: NDArray[np.float32], /) -> None: ...
    def set_embedding(self, rows: NDArray[Any], /) -> None: ...
    def set_head(self, rows: NDArray[Any], dtype: str, /) -> None: ...
    def set_draft_ids(self, ids: list[int], /) -> None: ...
    def finish(self) -> None: ...
    def allocate(self, blocks: int, block_size: int, states: int, dtype: str, /) -> None: ...
    def sweep(
        self, rows: Sequence[Any], block_tables: Mapping[int, Sequence[int]], /
    ) -> NDArray[np.float32]: ...
    def logits(
        self,
        residuals: NDArray[np.float32],
        rows: Sequence[int],
        depths: Sequence[int],
        draft: bool,
        /,
    ) -> NDArray[np.float32]: ...
    def pick(
        self,
        residuals: NDArray[np.float32],
        rows: Sequence[int],
        depths: Sequence[int],
        draws: Sequence[tuple[float, int, int]],
        draft: bool,
        /,
    ) -> tuple[list[int], list[float]]: ...
    def kv_bytes(self, layer: int, block: int, /) -> list[bytes]: ...
    def state_bytes(self, state: int, /) -> bytes: ...

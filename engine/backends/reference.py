"""The reference backend: plain torch, any device; slow, obvious, and the others' oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.backends.drawing import draw_draft_rows, draw_rows
from engine.backends.protocol import Draw, Row, Sweep, draft_vocabulary
from engine.checkpoint.source import WeightSource
from engine.errors import ConfigError
from engine.model.decoder import Decoder, Placement
from engine.model.weights import load_weights

_KV_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_NUMPY_DTYPES = {"fp32": np.float32, "fp16": np.float16}


class ReferenceBackend:
    """Runs sweeps with the reference decoder; implements `engine.backends.protocol.Backend`.

    `kv_dtype` is the cache's: K/V is rounded to it once, on writing. `draft_vocab_size`,
    `always_draft_ids` and `draft_ranking` make up `draft_ids`, as `draft_vocabulary` says.
    `threads`, if given, sets torch's thread count for the whole process; it changes speed only.
    Raises `ConfigError` for an unknown `kv_dtype`.
    """

    name = "reference"
    head_dtype = "fp32"

    def __init__(
        self,
        checkpoint: WeightSource,
        *,
        device: str | torch.device = "cpu",
        kv_dtype: Literal["fp32", "fp16"] = "fp32",
        draft_vocab_size: int,
        always_draft_ids: Sequence[int] = (),
        draft_ranking: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> None:
        if kv_dtype not in _KV_DTYPES:
            raise ConfigError(f"kv_dtype must be one of {', '.join(_KV_DTYPES)}, not {kv_dtype!r}")
        if threads is not None:
            torch.set_num_threads(threads)
        self.config = checkpoint.config
        self.linear_dtype = "fp32" if self.config.is_dense else "ternary"
        self._device = torch.device(device)
        self.kv_dtype: str = kv_dtype
        self._decoder = Decoder(self.config, load_weights(checkpoint, self._device))
        self._head_VD = self._decoder.weights.head_VD
        self._draft_ids = draft_vocabulary(
            self.config.vocab_size, draft_vocab_size, always_draft_ids, draft_ranking
        )
        self._draft_head_VD = self._head_VD
        if len(self._draft_ids) < self.config.vocab_size:
            self._draft_head_VD = self._head_VD[torch.from_numpy(self._draft_ids).to(self._device)]
        self._block_size = 0
        self._keys = self._values = self._states = torch.empty(0)

    @property
    def description(self) -> str:
        """How it computes, for people."""
        return f"torch {torch.__version__} on {self._device}, {torch.get_num_threads()} threads"

    @property
    def draft_ids(self) -> NDArray[np.int64]:
        """The token ids that `draft_head` scores, ascending."""
        return self._draft_ids

    def allocate(self, num_blocks: int, block_size: int, num_states: int) -> None:
        """Make room for K/V blocks of `block_size` positions and for saved exit states.

        What earlier calls allocated is dropped. On a CPU, memory becomes resident as it is used.
        """
        config = self.config
        shape = (
            config.num_layers,
            num_blocks,
            block_size,
            config.num_kv_heads,
            config.head_dim,
        )
        self._block_size = block_size
        self._keys, self._values = self._zeros(shape), self._zeros(shape)
        self._states = torch.zeros(num_states, config.hidden_size, device=self._device)

    @torch.inference_mode()
    def sweep(self, sweep: Sweep) -> Tensor:
        """Run the rows; R × hidden float32 residuals, each at its row's `last`, before any norm.

        All saved states are read before the first layer and written after the last. Raises
        `ValueError` for a row that the protocol does not allow.
        """
        rows = sweep.rows
        for row in rows:
            self._check(row)
        hidden_RD = self._sources(rows)
        key_slots = self._key_slots(rows, sweep.block_tables)
        placements: dict[tuple[int, ...], Placement] = {}
        borders = sorted({row.first for row in rows} | {row.last for row in rows})
        for first, last in pairwise(borders):
            active = tuple(i for i, row in enumerate(rows) if row.first <= first < row.last)
            if not active:
                continue
            if active not in placements:
                placements[active] = self._decoder.place([key_slots[i] for i in active])
            self._run(hidden_RD, active, placements[active], range(first, last))
        saved = [i for i, row in enumerate(rows) if row.target_state is not None]
        if saved:
            self._states[[rows[i].target_state for i in saved]] = hidden_RD[saved]
        return hidden_RD

    def head(
        self, residuals: Tensor, rows: Sequence[int], depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """Full-head logits, len(rows) × V, of the residuals picked by `rows`.

        `depths[i]` is the exit layer of row i: the final norm applies as the model says.
        """
        return self._logits(residuals, rows, depths, draft=False)

    def draft_head(
        self, residuals: Tensor, rows: Sequence[int], depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """The same over the draft vocabulary only: len(rows) × len(draft_ids) logits."""
        return self._logits(residuals, rows, depths, draft=True)

    def draw(
        self,
        residuals: Tensor,
        rows: Sequence[int],
        depths: Sequence[int],
        draws: Sequence[Draw],
    ) -> list[int]:
        """Tokens picked from the full head, one per row; ties go to the lowest id."""
        return draw_rows(self.head(residuals, rows, depths), draws)

    def draw_drafts(
        self,
        residuals: Tensor,
        rows: Sequence[int],
        depths: Sequence[int],
        draws: Sequence[Draw],
    ) -> tuple[list[int], list[float]]:
        """The same from the draft head, and the probability of each row's likeliest id."""
        return draw_draft_rows(self.draft_head(residuals, rows, depths), draws, self._draft_ids)

    def close(self) -> None:
        """Release K/V and exit states; the backend is not used afterwards."""
        self._keys = self._values = self._states = torch.empty(0)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Cache of K or V: numpy's zeros are pages that nobody has touched yet, torch's are not."""
        dtype = _KV_DTYPES[self.kv_dtype]
        if self._device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self._device)
        return torch.from_numpy(np.zeros(shape, dtype=_NUMPY_DTYPES[self.kv_dtype]))

    def _check(self, row: Row) -> None:
        if not 0 <= row.first < row.last <= self.config.num_layers:
            raise ValueError(f"layers {row.first}..{row.last} are not in the model")
        if (row.token is None) == (row.source_state is None):
            raise ValueError("a row starts either from a token or from a saved state")
        if row.token is not None and row.first:
            raise ValueError("a row that starts from a token starts at layer 0")
        if row.token is not None and not 0 <= row.token < self.config.vocab_size:
            raise ValueError(f"token {row.token} is not in the vocabulary")
        if not 0 <= row.position < self.config.max_position_embeddings:
            raise ValueError(f"position {row.position} is outside the trained context")
        for state in (row.source_state, row.target_state):
            if state is not None and not 0 <= state < len(self._states):
                raise ValueError(f"exit state {state} was not allocated")

    def _sources(self, rows: Sequence[Row]) -> Tensor:
        """R × D residuals from which the rows start."""
        hidden_RD = torch.empty(len(rows), self.config.hidden_size, device=self._device)
        embedded = [i for i, row in enumerate(rows) if row.token is not None]
        resumed = [i for i, row in enumerate(rows) if row.source_state is not None]
        if embedded:
            tokens = [token for row in rows if (token := row.token) is not None]
            hidden_RD[embedded] = self._decoder.embed(tokens)
        if resumed:
            hidden_RD[resumed] = self._states[[rows[i].source_state for i in resumed]]
        return hidden_RD

    def _key_slots(
        self, rows: Sequence[Row], block_tables: Mapping[int, Sequence[int]]
    ) -> list[NDArray[np.int64]]:
        """For each row the cache slots of positions 0..p of its sequence."""
        offsets = np.arange(self._block_size, dtype=np.int64)
        num_blocks = self._keys.shape[1] if self._keys.ndim > 1 else 0
        slots: dict[int, NDArray[np.int64]] = {}
        for sequence in {row.sequence for row in rows}:
            blocks = np.asarray(block_tables[sequence], dtype=np.int64)
            if len(blocks) and (blocks.min() < 0 or blocks.max() >= num_blocks):
                raise ValueError(f"sequence {sequence} names blocks that were not allocated")
            slots[sequence] = (blocks[:, None] * self._block_size + offsets).ravel()
        for row in rows:
            if row.position >= len(slots[row.sequence]):
                raise ValueError(f"sequence {row.sequence} has no block for {row.position}")
        return [slots[row.sequence][: row.position + 1] for row in rows]

    def _run(
        self, hidden_RD: Tensor, active: Sequence[int], placement: Placement, layers: range
    ) -> None:
        """Move the active rows' residuals, in place, through some layers."""
        everyone = len(active) == len(hidden_RD)
        index = torch.tensor(active, device=self._device)
        hidden_ND = hidden_RD if everyone else hidden_RD[index]
        for layer in layers:
            keys_SGC, values_SGC = (
                self._keys[layer].flatten(0, 1),
                self._values[layer].flatten(0, 1),
            )
            hidden_ND = self._decoder.layer(layer, hidden_ND, placement, keys_SGC, values_SGC)
        hidden_RD[index] = hidden_ND

    @torch.inference_mode()
    def _logits(
        self, residuals: Tensor, rows: Sequence[int], depths: Sequence[int], *, draft: bool
    ) -> NDArray[np.float32]:
        if len(rows) != len(depths):
            raise ValueError(f"{len(rows)} rows, but {len(depths)} depths")
        head_VD = self._draft_head_VD if draft else self._head_VD
        if not rows:
            return np.empty((0, len(head_VD)), dtype=np.float32)
        picked_ND = residuals[torch.tensor(rows, device=self._device)]
        return self._decoder.logits(picked_ND, depths, head_VD).cpu().numpy()

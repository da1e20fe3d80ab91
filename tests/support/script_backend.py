"""A backend that says what a test wants to hear, and checks sweeps as the fake backend does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.config import ModelConfig
from support.fake_backend import FakeBackend


class ScriptBackend(FakeBackend):
    """Says `script[position]` after each position, and in drafts `draft_script[position]`."""

    def __init__(
        self,
        config: ModelConfig,
        script: Sequence[int],
        draft_script: Sequence[int] | None = None,
    ) -> None:
        super().__init__(config)
        self._full = list(script)
        self._draft = self._full if draft_script is None else list(draft_script)
        self._positions: list[int] = []

    def sweep(self, sweep: Any) -> Any:
        self._positions = [row.position for row in sweep.rows]
        return super().sweep(sweep)

    def head(self, residuals: Any, rows: Any, depths: Any) -> Any:
        super().head(residuals, rows, depths)
        return self._say(self._full, rows)

    def draft_head(self, residuals: Any, rows: Any, depths: Any) -> Any:
        super().draft_head(residuals, rows, depths)
        return self._say(self._draft, rows)

    def _say(self, script: Sequence[int], rows: Any) -> Any:
        logits = np.zeros((len(rows), self.config.vocab_size), dtype=np.float32)
        for index, row in enumerate(rows):
            logits[index, script[self._positions[row]]] = 5.0
        return logits

"""A fake backend that lets errors happen: they change tokens instead of raising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.backends.protocol import Row
from support.fake_backend import CHAIN, FakeBackend
from support.hashing import Words


class LaxBackend(FakeBackend):
    """Reads whatever cells and exit states hold, as a real backend would."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, check_reads=False)

    def _start(self, rows: Sequence[Row]) -> Words:
        """As the strict one does, but for asking what a saved state is."""
        residuals = np.zeros((len(rows), 3), dtype=np.uint64)
        residuals[:, CHAIN] = self._token_words[[row.token or 0 for row in rows]]
        for index, row in enumerate(rows):
            if row.source_state is not None:
                residuals[index] = self._state_words[row.source_state]
        return residuals

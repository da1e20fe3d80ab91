"""A backend with a clock of its own, on which every piece of work takes a known time."""

from __future__ import annotations

from collections.abc import Sequence

from engine.backends.protocol import Draw, Sweep
from support.fake_backend import FakeBackend, Words

LAYER_S = 1.0
HEAD_S = 0.25
DRAFT_HEAD_S = 0.5


class TickingBackend(FakeBackend):
    """A sweep takes `LAYER_S` for each layer in which a row is active, however many rows.

    A head takes its time however many rows it sees, and everything else none at all.
    """

    now_s: float = 0.0

    def clock(self) -> float:
        """Seconds of work so far."""
        return self.now_s

    def sweep(self, sweep: Sweep) -> Words:
        """Run the rows, in a second per layer."""
        active = {layer for row in sweep.rows for layer in range(row.first, row.last)}
        self.now_s += LAYER_S * len(active)
        return super().sweep(sweep)

    def draw(
        self, residuals: Words, rows: Sequence[int], depths: Sequence[int], draws: Sequence[Draw]
    ) -> list[int]:
        """Pick tokens, in a quarter of a second."""
        self.now_s += HEAD_S
        return super().draw(residuals, rows, depths, draws)

    def draw_drafts(
        self, residuals: Words, rows: Sequence[int], depths: Sequence[int], draws: Sequence[Draw]
    ) -> tuple[list[int], list[float]]:
        """Pick drafts, in half a second."""
        self.now_s += DRAFT_HEAD_S
        return super().draw_drafts(residuals, rows, depths, draws)

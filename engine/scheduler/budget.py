"""How many prompt rows may join a sweep without stalling the streams that decode."""

from __future__ import annotations

_SMOOTHING = 0.2
"""Weight of a new measurement in the moving average."""


class PrefillBudget:
    """Turns a time budget into rows by the measured cost of running a row through a layer."""

    def __init__(self, budget_s: float, max_rows: int, min_rows: int) -> None:
        self._budget_s = budget_s
        self._max_rows = max_rows
        self._min_rows = min(min_rows, max_rows)
        self._row_layer_s: float | None = None

    def observe(self, num_row_layers: int, duration_s: float) -> None:
        """Learn from a sweep that ran prompt rows: rows × layers, and its wall time."""
        if num_row_layers < 1:
            return
        cost = duration_s / num_row_layers
        if self._row_layer_s is None:
            self._row_layer_s = cost
        else:
            self._row_layer_s += _SMOOTHING * (cost - self._row_layer_s)

    def num_rows(self, num_layers: int, anyone_decodes: bool) -> int:
        """Rows of `num_layers` layers to add to the next sweep; never 0, so prompts progress."""
        if not anyone_decodes:
            return self._max_rows
        if not self._row_layer_s:
            return self._min_rows
        affordable = int(self._budget_s / (self._row_layer_s * num_layers))
        return max(self._min_rows, min(self._max_rows, affordable))

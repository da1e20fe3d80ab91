"""What a bench is run with, and how long each of its cases is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AGREEMENTS = (0.5, 0.7, 0.85, 0.95)
SEQUENCES = (1, 2, 4, 8)
FIXED_DRAFTS = (1, 2, 3, 4, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line's options."""

    work: Path
    """Models, logs and results: what can be made again."""
    shape: str = "v1"
    """As `bitskip synth --shape` knows it."""
    backend: str = "auto"
    threads: int = 2
    repeats: int = 5
    scale: float = 1.0
    """Factor of all token counts: below 1 for trying the harness out."""

    def tokens(self, count: int) -> int:
        """A token count, scaled."""
        return max(2, round(count * self.scale))

"""Parity figures, gathered by tests and printed as one table: `pytest -s tests/parity`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from support.llama_oracle import OracleReading

Logits = Callable[[Sequence[int]], NDArray[np.float32]]
"""Tokens → T × V logits."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a backend's logits are from an oracle's."""

    num_rows: int
    """Rows in which no activation lay near a quantiser's edge."""
    max_error: float
    """Over them."""
    num_undecided: int
    max_undecided_error: float
    """Of the other rows, where a neighbouring integer may have been taken."""
    likeliest: float
    """Share of all rows in which both find the same token likeliest."""


def measure(
    actual: Logits, oracle: Callable[[Sequence[int]], OracleReading], sequences: Sequence[list[int]]
) -> Parity:
    """Compare all rows of all sequences."""
    readings = [oracle(tokens) for tokens in sequences]
    expected = np.concatenate([reading.logits for reading in readings])
    decided = np.concatenate([reading.decided for reading in readings])
    found = np.concatenate([actual(tokens) for tokens in sequences])
    errors = np.abs(found - expected).max(axis=1)
    return Parity(
        num_rows=int(decided.sum()),
        max_error=float(errors[decided].max(initial=0.0)),
        num_undecided=int((~decided).sum()),
        max_undecided_error=float(errors[~decided].max(initial=0.0)),
        likeliest=float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
    )


@dataclass(slots=True)
class ParityTable:
    """Rows of (model, backend), in the order in which they were measured."""

    title: str
    rows: list[tuple[str, str, Parity]] = field(default_factory=list)

    def add(self, model: str, backend: str, parity: Parity) -> None:
        """Note one measurement."""
        self.rows.append((model, backend, parity))

    def __str__(self) -> str:
        models = max(len(model) for model, _, _ in self.rows)
        backends = max(len(backend) for _, backend, _ in self.rows)
        lines = [
            f"{self.title}",
            f"{'model':{models}}  {'backend':{backends}}  {'rows':>5}  {'max error':>9}  "
            f"{'near an edge':>12}  {'their max':>9}  {'same token':>10}",
        ]
        for model, backend, parity in self.rows:
            their = f"{parity.max_undecided_error:9.1e}" if parity.num_undecided else f"{'':9}"
            lines.append(
                f"{model:{models}}  {backend:{backends}}  {parity.num_rows:5}  "
                f"{parity.max_error:9.1e}  {parity.num_undecided:12}  {their}  "
                f"{parity.likeliest:10.1%}"
            )
        return "\n".join(lines)


@contextmanager
def printed_table(title: str) -> Iterator[ParityTable]:
    """A table that is printed once everything is in it."""
    table = ParityTable(title)
    yield table
    if table.rows:
        print(f"\n\n{table}\n")

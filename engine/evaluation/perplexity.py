"""Shifted, causal perplexity of every exit, and how often it agrees with full depth.

One pass over the text serves all exits: rows stop at each exit in turn, their residuals are
saved as exit states, and the next sweep goes on from there.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.backends.protocol import Backend, Row, Sweep

_BLOCK_SIZE = 16
_ROWS = 128
"""Rows per sweep, and so the logits that exist at once."""
_LARGEST_EXPONENT = math.log(sys.float_info.max)

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class ExitTally:
    """Sums of one exit over all scored tokens."""

    num_tokens: int = 0
    num_agreed: int = 0
    negative_log_likelihood: float = 0.0
    """In nats."""
    choices: Counter[int] = field(default_factory=Counter)
    """How often each token was the most likely one."""

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood per token; infinite beyond a float's range."""
        mean = self.negative_log_likelihood / self.num_tokens
        # An exit that was never trained may be that far off.
        return math.exp(mean) if mean < _LARGEST_EXPONENT else math.inf

    @property
    def agreement(self) -> float:
        """Share of positions whose most likely token is that of the full depth."""
        return self.num_agreed / self.num_tokens

    def chance_agreement(self, full: ExitTally) -> float:
        """How often two would agree that choose as often each token, but whatever the text."""
        common = sum(count * full.choices[token] for token, count in self.choices.items())
        return common / (self.num_tokens * full.num_tokens)

    def bits_per_byte(self, num_bytes: int) -> float:
        """The same likelihood per byte of text, comparable between tokenizers."""
        return self.negative_log_likelihood / math.log(2.0) / num_bytes


def score_exits(
    backend: Backend,
    windows: Sequence[Sequence[int]],
    exits: Sequence[int],
    progress: Progress = lambda done, total: None,
) -> dict[int, ExitTally]:
    """Score every token of each window but its first, at each exit (full depth included).

    Windows must fit the model's context; those of a single token are passed over. Allocates the
    backend's K/V anew.
    """
    depth = backend.config.num_layers
    stops = sorted({*exits, depth})
    longest = max(len(window) for window in windows)
    num_blocks = -(-longest // _BLOCK_SIZE)
    backend.allocate(num_blocks, _BLOCK_SIZE, 2 * _ROWS)
    tallies = {stop: ExitTally() for stop in stops}
    for done, window in enumerate(windows):
        for start in range(0, len(window) - 1, _ROWS):
            positions = range(start, min(start + _ROWS, len(window) - 1))
            targets = np.asarray(window[positions.start + 1 : positions.stop + 1])
            best: dict[int, NDArray[np.int64]] = {}
            for stop, logits in _logits_by_exit(backend, window, positions, stops, num_blocks):
                tallies[stop].num_tokens += len(targets)
                tallies[stop].negative_log_likelihood += _negative_log_likelihood(logits, targets)
                best[stop] = logits.argmax(axis=1)
            for stop in stops:
                tallies[stop].num_agreed += int((best[stop] == best[depth]).sum())
                tallies[stop].choices.update(best[stop].tolist())
        progress(done + 1, len(windows))
    return tallies


def _logits_by_exit(
    backend: Backend,
    window: Sequence[int],
    positions: range,
    stops: Sequence[int],
    num_blocks: int,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(exit, R × V logits) of the rows at `positions`, whose predecessors were all run before."""
    table = {0: range(num_blocks)}
    first = 0
    # A sweep must not save into the slots that it reads: two banks of slots take turns.
    source, target = range(_ROWS), range(_ROWS, 2 * _ROWS)
    for stop in stops:
        rows = [
            Row(
                sequence=0,
                position=position,
                first=first,
                last=stop,
                token=window[position] if first == 0 else None,
                source_state=None if first == 0 else source[index],
                target_state=None if stop == stops[-1] else target[index],
            )
            for index, position in enumerate(positions)
        ]
        residuals = backend.sweep(Sweep(rows, table))
        yield stop, backend.head(residuals, range(len(rows)), [stop] * len(rows))
        first = stop
        source, target = target, source


def _negative_log_likelihood(logits_RV: NDArray[np.float32], targets_R: NDArray[np.int64]) -> float:
    wide = logits_RV.astype(np.float64)
    peak = wide.max(axis=1)
    log_total = np.log(np.exp(wide - peak[:, None]).sum(axis=1)) + peak
    chosen = wide[np.arange(len(targets_R)), targets_R]
    return float((log_total - chosen).sum())

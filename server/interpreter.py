"""Settings of the Python process that keep the event loop prompt while the engine computes."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL_S = 0.001
"""How long a thread may keep the interpreter when another wants it. The event loop gives it up at
every write to a socket; at Python's 5 ms, each write of a step with many streams could wait that
long for the engine thread."""
GC_THRESHOLDS = (20_000, 10, 20)
"""Allocations, and younger collections, between collections. Every token that is in flight is a
few objects; Python's own 700 would walk through them all the time, to find next to nothing: what
a finished request leaves behind is freed by its reference counts."""


def settle_interpreter() -> None:
    """Call it once everything is loaded.

    What lives until the end, modules and model alike, is put out of the collector's sight: one
    look at all of it stops every thread for 50 ms and more.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    gc.collect()
    gc.freeze()

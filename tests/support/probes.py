"""Looking into a backend's memory, and at what it should hold: a prefill from scratch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from engine.backends.protocol import Backend, Row, Sweep
from engine.backends.reference import ReferenceBackend
from support.fake_backend import FakeBackend

if TYPE_CHECKING:
    from engine.backends.cpu.backend import CpuBackend

Bits = NDArray[Any]
"""Integers: floats are compared by their bits."""


class Probe(Protocol):
    """Reads one backend; `fresh` runs another of the same weights."""

    @property
    def backend(self) -> Backend:
        """The backend that is looked into."""
        ...

    def kv(self, blocks: Sequence[int], block_size: int, num: int, depth: int) -> Bits:
        """K/V of positions 0..num−1 in layers 0..depth−1: depth × num × what a cell holds."""
        ...

    def state(self, slot: int) -> Bits:
        """A saved exit state."""
        ...

    def fresh(self, tokens: Sequence[int], depth: int) -> tuple[Bits, Bits]:
        """K/V of all the tokens and the last one's residual, from one sweep, all alone."""
        ...


class _Remembering(ABC):
    """Remembers what was computed from scratch: it is a pure function of tokens and depth."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[int, ...]], tuple[Bits, Bits]] = {}

    def fresh(self, tokens: Sequence[int], depth: int) -> tuple[Bits, Bits]:
        key = depth, tuple(tokens)
        if key not in self._known:
            self._known[key] = self._compute(key[1], depth)
        return self._known[key]

    @abstractmethod
    def _compute(self, tokens: tuple[int, ...], depth: int) -> tuple[Bits, Bits]: ...


def _one_sweep(backend: Backend, tokens: Sequence[int], depth: int) -> Any:
    backend.allocate(1, len(tokens), 0)
    rows = [Row(0, position, 0, depth, token) for position, token in enumerate(tokens)]
    return backend.sweep(Sweep(rows, {0: [0]}))


class FakeProbe(_Remembering):
    """Of a fake backend; `scratch` is another one with the same weights."""

    def __init__(self, backend: FakeBackend, scratch: FakeBackend) -> None:
        super().__init__()
        self.backend = backend
        self._scratch = scratch

    def kv(self, blocks: Sequence[int], block_size: int, num: int, depth: int) -> Bits:
        slots = _slots(blocks, block_size, num)
        return self.backend.cells[:depth, slots]

    def state(self, slot: int) -> Bits:
        return self.backend._state_words[slot].copy()

    def _compute(self, tokens: tuple[int, ...], depth: int) -> tuple[Bits, Bits]:
        residuals = _one_sweep(self._scratch, tokens, depth)
        return self._scratch.cells[:depth].copy(), residuals[-1].copy()


class ReferenceProbe(_Remembering):
    """Of the reference backend; `scratch` is another one with the same weights."""

    def __init__(self, backend: ReferenceBackend, scratch: ReferenceBackend) -> None:
        super().__init__()
        self.backend = backend
        self._scratch = scratch

    def kv(self, blocks: Sequence[int], block_size: int, num: int, depth: int) -> Bits:
        return _kv_bits(self.backend, _slots(blocks, block_size, num), depth)

    def state(self, slot: int) -> Bits:
        return self.backend._states[slot].numpy().copy().view(np.int32)

    def _compute(self, tokens: tuple[int, ...], depth: int) -> tuple[Bits, Bits]:
        residuals = _one_sweep(self._scratch, tokens, depth)
        kv = _kv_bits(self._scratch, np.arange(len(tokens)), depth)
        return kv, residuals[-1].numpy().copy().view(np.int32)


class NativeProbe(_Remembering):
    """Of the native backend; `scratch` is another one with the same weights."""

    def __init__(self, backend: CpuBackend, scratch: CpuBackend) -> None:
        super().__init__()
        self.backend = backend
        self._scratch = scratch

    def kv(self, blocks: Sequence[int], block_size: int, num: int, depth: int) -> Bits:
        return _native_bits(self.backend, blocks, block_size, num, depth)

    def state(self, slot: int) -> Bits:
        return np.frombuffer(self.backend._model.state_bytes(slot), dtype=np.int32)

    def _compute(self, tokens: tuple[int, ...], depth: int) -> tuple[Bits, Bits]:
        residuals = _one_sweep(self._scratch, tokens, depth)
        kv = _native_bits(self._scratch, [0], len(tokens), len(tokens), depth)
        return kv, residuals[-1].view(np.int32)


def make_probe(backend: Backend, scratch: Backend) -> Probe:
    """A probe of a real backend; `scratch` is another one with the same weights."""
    if isinstance(backend, ReferenceBackend):
        return ReferenceProbe(backend, cast(ReferenceBackend, scratch))
    return NativeProbe(cast("CpuBackend", backend), cast("CpuBackend", scratch))


def _native_bits(
    backend: CpuBackend, blocks: Sequence[int], block_size: int, num: int, depth: int
) -> Bits:
    """Keys, values and scales of each position along the last axis, as bytes."""
    num_heads = backend.config.num_kv_heads

    def cells(layer: int, block: int) -> Bits:
        parts = [
            np.frombuffer(part, dtype=np.uint8).reshape(num_heads, block_size, -1)
            for part in backend._model.kv_bytes(layer, block)
        ]
        return np.concatenate(parts, axis=-1).swapaxes(0, 1).reshape(block_size, -1)

    used = blocks[: -(-num // block_size)]
    return np.stack(
        [np.concatenate([cells(layer, block) for block in used])[:num] for layer in range(depth)]
    )


def _slots(blocks: Sequence[int], block_size: int, num: int) -> NDArray[np.int64]:
    positions = np.arange(num)
    return np.asarray(blocks, dtype=np.int64)[positions // block_size] * block_size + (
        positions % block_size
    )


def _kv_bits(backend: ReferenceBackend, slots: NDArray[np.int64], depth: int) -> Bits:
    """Keys, then values, along the last axis; float32 as its bits."""
    parts = [
        memory[:depth].flatten(1, 2)[:, slots].flatten(2).numpy()
        for memory in (backend._keys, backend._values)
    ]
    return np.concatenate(parts, axis=-1).view(np.int32)

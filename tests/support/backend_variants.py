"""Every way to compute: backends, precisions, instruction sets and thread counts.

What is promised: of one precision, all variants give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import pytest

from engine.backends.protocol import Backend
from engine.backends.reference import ReferenceBackend
from engine.backends.registry import has_native_kernels
from engine.checkpoint.source import WeightSource

THREAD_COUNTS = (1, 2, 3, 4)

needs_native = pytest.mark.skipif(
    not has_native_kernels(), reason="the native kernels are not compiled"
)
"""tests/packaging says when their absence is a fault."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What decides the bits of a backend's results; everything else must not."""

    backend: Literal["reference", "cpu"]
    head_dtype: str
    kv_dtype: str
    dense_dtype: str = "bf16"
    """Of dense linears; the reference backend's are always fp32."""

    def __str__(self) -> str:
        dense = "" if self.dense_dtype == "bf16" else f"-dense-{self.dense_dtype}"
        return f"{self.backend}-head-{self.head_dtype}-kv-{self.kv_dtype}{dense}"

    def make(
        self,
        checkpoint: WeightSource,
        *,
        isa: str = "auto",
        threads: int = 1,
        draft_vocab_size: int = 32,
        always_draft_ids: Sequence[int] = (),
        draft_ranking: Sequence[int] | None = None,
    ) -> Backend:
        """A backend of this precision; the reference has but one instruction set and thread."""
        options: dict[str, Any] = {
            "kv_dtype": self.kv_dtype,
            "draft_vocab_size": draft_vocab_size,
            "always_draft_ids": always_draft_ids,
            "draft_ranking": draft_ranking,
        }
        if self.backend == "reference":
            return ReferenceBackend(checkpoint, **options)
        from engine.backends.cpu.backend import CpuBackend

        options |= {"head_dtype": self.head_dtype, "dense_dtype": self.dense_dtype}
        options |= {"isa": isa, "threads": threads}
        return CpuBackend(checkpoint, **options)

    def make_all(self, checkpoint: WeightSource, **options: Any) -> list[Backend]:
        """One backend per instruction set and thread count, the plainest last."""
        if self.backend == "reference":
            return [self.make(checkpoint, **options)]
        return [
            self.make(checkpoint, isa=isa, threads=threads, **options)
            for isa, threads in product(instruction_sets(), THREAD_COUNTS[::-1])
        ]


def instruction_sets() -> list[str]:
    """Those that the native kernels were compiled for and this machine has, best first."""
    from engine.backends.cpu import backend

    return backend.instruction_sets()


REFERENCE = tuple(Precision("reference", "fp32", kv_dtype) for kv_dtype in ("fp32", "fp16"))
NATIVE = tuple(
    Precision("cpu", head_dtype, kv_dtype)
    for head_dtype, kv_dtype in product(("int8", "bf16", "fp32"), ("fp16", "int8"))
)
EXACT = Precision("cpu", "fp32", "fp32", "fp32")
"""Rounds nothing but what the model's formulas round, as `REFERENCE[0]` does."""
FAMILY = (REFERENCE[0], NATIVE[0])
"""One precision of each backend that runs every variant of the family."""


def each_precision(*precisions: Precision) -> pytest.MarkDecorator:
    """Run a test with `precision` as each of these; all of them if none is named."""
    return pytest.mark.parametrize(
        "precision",
        [
            pytest.param(precision, id=str(precision), marks=needs_native)
            if precision.backend == "cpu"
            else pytest.param(precision, id=str(precision))
            for precision in precisions or (*REFERENCE, *NATIVE, EXACT)
        ],
    )

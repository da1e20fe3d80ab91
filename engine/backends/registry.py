"""Backends by name. Each is imported only when it is chosen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from engine.backends.protocol import Backend
from engine.checkpoint.loader import Checkpoint
from engine.errors import ConfigError

logger = logging.getLogger(__name__)

BACKENDS = ("cpu", "reference")
"""Names in order of preference: `auto` takes the first that can run here."""


def create_backend(
    name: str,
    checkpoint: Checkpoint,
    *,
    draft_vocab_size: int,
    always_draft_ids: Sequence[int],
    draft_ranking: Sequence[int],
    threads: int | None = None,
    head_dtype: str = "auto",
    kv_dtype: str = "auto",
    dense_dtype: str = "auto",
) -> Backend:
    """Load a checkpoint onto the backend `name`, or onto the best one for `auto`.

    The dtypes are those of the head, of the K/V cache and of a dense model's linears; `auto`
    leaves them to the backend. Raises `ConfigError` for what does not exist, or cannot run here.
    """
    if name == "auto":
        name = BACKENDS[0]
        if not has_native_kernels():
            if not has_torch():
                raise ConfigError(
                    "there is nothing to compute with: the native kernels were not compiled "
                    "(install a C++ compiler, then the package again), and the reference backend "
                    "needs torch: pip install 'bitskip-server[torch]'"
                )
            name = "reference"
            logger.warning(
                "the native kernels were not compiled (no C++ compiler at install time): "
                "running on the reference backend, which is many times slower"
            )
    chosen: dict[str, Any] = {
        "head_dtype": head_dtype,
        "kv_dtype": kv_dtype,
        "dense_dtype": dense_dtype,
    }
    options = {option: value for option, value in chosen.items() if value != "auto"}
    if name == "cpu":
        if not has_native_kernels():
            raise ConfigError(
                "backend 'cpu' was not compiled: install a C++ compiler, then the package again"
            )
        from engine.backends.cpu.backend import CpuBackend

        return CpuBackend(
            checkpoint,
            draft_vocab_size=draft_vocab_size,
            always_draft_ids=always_draft_ids,
            draft_ranking=draft_ranking,
            threads=threads,
            **options,
        )
    if name == "reference":
        if not has_torch():
            raise ConfigError(
                "backend 'reference' needs torch: pip install 'bitskip-server[torch]'"
            )
        from engine.backends.reference import ReferenceBackend

        for option in ("head_dtype", "dense_dtype"):
            if options.pop(option, "fp32") != "fp32":
                raise ConfigError(
                    f"{option} {chosen[option]} is not for the reference backend, which computes "
                    "with fp32"
                )
        return ReferenceBackend(
            checkpoint,
            draft_vocab_size=draft_vocab_size,
            always_draft_ids=always_draft_ids,
            draft_ranking=draft_ranking,
            threads=threads,
            **options,
        )
    choices = ", ".join(("auto", *BACKENDS))
    raise ConfigError(f"backend {name!r} does not exist; choose one of: {choices}")


def has_torch() -> bool:
    """Whether torch is installed, which only the reference backend and training need."""
    return find_spec("torch") is not None


def has_native_kernels() -> bool:
    """Whether the cpu backend was compiled when the package was installed."""
    return find_spec("engine.backends.cpu._native") is not None

"""What an evaluation ran on, without a date, a host's name or a path."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine import __version__
from engine.backends.protocol import Backend
from engine.evaluation.results import Machine

_PACKAGES = ("numpy", "tokenizers", "torch")


def describe_machine(backend: Backend) -> Machine:
    """Processor, memory, system, versions, and what computes."""
    return Machine(
        processor=_field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        num_cores=_num_cores(),
        memory_mib=_memory_mib(),
        system=f"{platform.system()} {platform.machine()}",
        packages={"python": platform.python_version(), "bitskip-server": __version__}
        | {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        backend=backend.name,
        backend_description=backend.description,
        head_dtype=backend.head_dtype,
        kv_dtype=backend.kv_dtype,
    )


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_mib() -> int | None:
    total = _field("/proc/meminfo", "MemTotal")
    return None if total is None else int(total.split()[0]) >> 10


def _field(file: str, name: str) -> str | None:
    """The first line `name: value` of a Linux kernel's file; None elsewhere."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

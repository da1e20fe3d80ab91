"""What the figures were measured on, and who else was using it. Linux only (`/proc`)."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ISA_FLAGS = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
PACKAGES = ("bitskip-server", "llama-cpp-python", "numpy", "torch", "transformers")

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20


def describe() -> dict[str, Any]:
    """Processor, memory and kernel."""
    cpu = _cpu_info()
    flags = cpu.get("flags", "").split()
    meminfo = _fields(Path("/proc/meminfo"))
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "family_model_stepping": "/".join(
            cpu.get(key, "?") for key in ("cpu family", "model", "stepping")
        ),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "mhz": cpu.get("cpu MHz"),
        "flags": [flag for flag in ISA_FLAGS if flag in flags],
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "huge_pages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "memory_mib": int(meminfo["MemTotal"].split()[0]) >> 10,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiler": _compiler(),
    }


def versions() -> dict[str, str | None]:
    """The packages that were compared; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit(root: Path) -> str | None:
    """The checkout's commit, with a + if files differ from it; None outside git."""
    try:
        head, changes = (
            subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
            ).stdout
            for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")


def load_average() -> list[float]:
    """Over 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def busy_s() -> float:
    """Seconds of processor time, of all cores together, that anybody has used or was denied."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks[:8]
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def process_s(pids: Iterable[int]) -> float:
    """Seconds of processor time that these processes have used; 0 for those that have ended."""
    total = 0.0
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        # The second field is the command in parentheses, and may itself hold spaces.
        fields = stat.rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return total


def memory_mib(pid: int) -> dict[str, float]:
    """A process's memory by kind: VmRSS and its parts, and the peak VmHWM, in MiB."""
    fields = _fields(Path(f"/proc/{pid}/status"))
    names = ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM")
    return {name: int(fields[name].split()[0]) * 1024 / _MIB for name in names if name in fields}


def _fields(file: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _cpu_info() -> dict[str, str]:
    first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    lines = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def _compiler() -> str | None:
    try:
        done = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.splitlines()[0]

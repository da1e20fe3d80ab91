"""The peak memory of `bitskip pack` on a float32 checkpoint, and how long it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from benchmarks import machine
from benchmarks.bench import Bench, Recorder, Sample
from benchmarks.worker import ROOT, python_environment

POLL_S = 0.02


def run(bench: Bench, record: Recorder) -> None:
    """Pack once: memory does not vary."""
    latent = bench.models.latent()
    out = bench.options.work / "packed"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "server", "pack", str(latent), str(out)]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=python_environment())
    anonymous = 0.0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        anonymous = max(anonymous, machine.memory_mib(process.pid).get("RssAnon", 0.0))
        time.sleep(POLL_S)
    seconds = time.perf_counter() - started
    # Reaped above, which Popen has to be told.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"bitskip pack ended with code {process.returncode}")
    megabytes = (latent / "model.safetensors").stat().st_size / 1e6
    packed = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    shutil.rmtree(out)
    notes = {
        "anonymous_mib": anonymous,
        "seconds": seconds,
        "source_mb": megabytes,
        "packed_mb": packed,
    }
    record.add("bitskip", "MiB", Sample(usage.ru_maxrss / 1024, notes), figure="pack peak")

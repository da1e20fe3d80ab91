"""The floor: what it takes merely to read the bytes of the weights."""

from __future__ import annotations

import ctypes
import subprocess
import time
from pathlib import Path

import numpy as np

from benchmarks.workers.loop import serve

SOURCE = Path(__file__).resolve().parents[1] / "native" / "read.cpp"


class BandwidthWorker:
    """Reads a buffer with some threads, as fast as plain loads go."""

    def load(self, num_bytes: int, threads: int, build: str) -> dict[str, str]:
        """Compile the loop into the folder `build`, and make a buffer of resident pages."""
        library = Path(build) / "read.so"
        library.parent.mkdir(parents=True, exist_ok=True)
        command = ["c++", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*command, "-o", library, SOURCE], check=True)
        self._read = ctypes.CDLL(str(library)).read_all
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._read.restype = ctypes.c_uint64
        self._buffer = np.arange(num_bytes // 8, dtype=np.uint64)
        self._threads = threads
        return {"command": " ".join(command)}

    def read(self, passes: int) -> dict[str, float]:
        """Seconds that a pass over the whole buffer takes, the mean of some."""
        started = time.perf_counter()
        for _ in range(passes):
            self._read(self._buffer.ctypes.data, self._buffer.nbytes, self._threads)
        seconds = (time.perf_counter() - started) / passes
        return {"seconds": seconds, "gb_per_s": self._buffer.nbytes / seconds / 1e9}


if __name__ == "__main__":
    serve(BandwidthWorker())

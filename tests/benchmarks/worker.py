"""The bench's side of a worker: a process per system, alive for a whole section.

Competitors cannot share a process (their thread pools and allocators would meet), and starting
one for each sample would measure loading. So every system gets a process that loads once and
then sleeps on its stdin while another one is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent


class WorkerError(Exception):
    """A worker failed; the message holds its traceback, or says that it is gone."""


class Worker:
    """A process that runs `benchmarks.workers.<name>`; a context manager."""

    def __init__(self, name: str, log: Path, **environment: str) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.workers.{name}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=python_environment(**environment),
            )

    @property
    def pid(self) -> int:
        """The process to watch."""
        return self._process.pid

    def call(self, verb: str, **args: Any) -> Any:
        """Have one method of the worker run; raises `WorkerError` with what went wrong."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"verb": verb, "args": args}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise WorkerError(f"{self.name} ended with code {code}; see {self._log}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}.{verb} failed:\n{answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """Let it end by itself, which its end of input tells it to do."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def python_environment(**changes: str) -> dict[str, str]:
    """This process's environment, such that a child finds the sources and the bench.

    Thread counts and settings of ours that the caller happens to have set stay out of it: every
    system is told its threads explicitly.
    """
    dropped = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "WEB_CONCURRENCY")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.startswith("BITSKIP_")
    }
    path = os.pathsep.join([str(ROOT), str(TESTS), *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, **changes}

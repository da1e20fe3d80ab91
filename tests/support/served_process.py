"""`bitskip serve` as its users start it: a process of its own, on a port of 127.0.0.1."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from engine.checkpoint.packing import pack_checkpoint
from engine.config import ModelConfig
from support.checkpoints import tiny_config, write_checkpoint
from support.live_server import wait_until
from support.tokenizers import write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 320
NUM_LAYERS = 6
CONTEXT = 2048
ENDLESS: dict[str, Any] = {
    "prompt": "Once",
    "max_tokens": CONTEXT - 8,
    "ignore_eos": True,
    "speculative": False,
    "stream": True,
}
"""Takes long enough on any machine to be left in the middle."""
_ADDRESS = re.compile(r"address +((?:https?:|unix:)\S+)")
_START_S = 60.0


def service_config(**changes: Any) -> ModelConfig:
    """Six layers, and a context long enough for requests that are still running when asked."""
    return tiny_config(
        vocab_size=VOCAB_SIZE,
        num_layers=NUM_LAYERS,
        max_position_embeddings=CONTEXT,
        eos_token_ids=(VOCAB_SIZE - 1,),
        **changes,
    )


def write_model(path: Path, **changes: Any) -> Path:
    """An unpacked checkpoint with a tokenizer, whose exits from 2 on often agree."""
    write_checkpoint(path, service_config(**changes), seed=3, agreement_after=2, damping=0.15)
    return write_tokenizer(path, VOCAB_SIZE)


def write_packed_model(path: Path, **changes: Any) -> Path:
    """The same model as `write_model`, packed."""
    pack_checkpoint(write_model(path.with_name(f"{path.name}-source"), **changes), path)
    return path


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without the server's own variables, and with `changes`.

    What a server packs goes to a directory that ends with the tests.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BITSKIP_") and name not in ("WEB_CONCURRENCY", "PYTHONPATH")
    }
    return {**kept, "OMP_NUM_THREADS": "1", "BITSKIP_CACHE_DIR": _cache_directory(), **changes}


@cache
def _cache_directory() -> str:
    directory = tempfile.mkdtemp(prefix="bitskip-tests-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def run_command(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`bitskip` with these arguments, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "server", *map(str, arguments)],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


class ServedProcess:
    """A running `bitskip serve`, with what it logs in a file."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        cwd: Path = ROOT,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=environment(**variables), stdout=stderr, stderr=stderr
            )
        try:
            wait_until(self._has_started, _START_S)
        except BaseException:
            self.kill()
            raise
        found = _ADDRESS.search(self.log)
        assert found, f"exit code {self.process.returncode}:\n{self.log}"
        self.url = found[1]
        self.http = httpx.Client(base_url=self.url, timeout=60)

    @property
    def log(self) -> str:
        """Everything printed so far."""
        return self._log.read_text(encoding="utf-8")

    def _has_started(self) -> bool:
        return bool(_ADDRESS.search(self.log)) or self.process.poll() is not None

    def complete(self, **body: Any) -> dict[str, Any]:
        """The answer to a completion request, which must succeed."""
        response = self.http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Prometheus samples: (name, "label=value" …), sorted, `model_name` left out → value."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        return {
            (sample.name, *_labels(sample.labels)): sample.value
            for family in families
            for sample in family.samples
        }

    def metric(self, name: str, **labels: object) -> float:
        """One sample, 0 if it has never been set."""
        return self.metrics().get((name, *_labels(labels)), 0.0)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _labels(labels: Mapping[str, object]) -> list[str]:
    return sorted(f"{name}={value}" for name, value in labels.items() if name != "model_name")


@contextmanager
def serving(
    model: Path | None,
    log: Path,
    *options: str,
    command: tuple[str, ...] = (),
    cwd: Path = ROOT,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[ServedProcess]:
    """A server for the length of a `with`; `command` replaces `python -m server`.

    `variables` are added to its environment.
    """
    base = command or (sys.executable, "-m", "server")
    arguments = [] if model is None else [str(model)]
    served = ServedProcess(
        [*base, "serve", *arguments, "--port", "0", "--threads", "1", *options],
        log,
        cwd,
        variables,
    )
    try:
        yield served
    finally:
        served.http.close()
        served.kill()

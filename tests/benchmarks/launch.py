"""The commands that start the servers."""

from __future__ import annotations

import sys
import sysconfig
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.serving import Server, free_port

SITE = Path(sysconfig.get_path("platlib"))
"""`make bench` has llama-cpp-python build llama.cpp's server too, and install it here."""
LLAMA_SERVER = SITE / "bin" / "llama-server"
LLAMA_LIBRARIES = SITE / "lib"


def launch_bitskip(
    bench: Bench, model: Path | None, *options: str, backend: str | None = None
) -> AbstractContextManager[Server]:
    """`bitskip serve`; without a model, the demo."""
    port = free_port()
    command = [
        sys.executable, "-m", "server", "serve", *([str(model)] if model else []),
        "--port", str(port), "--threads", str(bench.options.threads),
        "--backend", backend or bench.options.backend, "--log-level", "warning", *options,
    ]  # fmt: skip
    return bench.server(command, port)


def launch_llama(
    bench: Bench, model: Path, draft: Path | None = None, num_drafts: int = 0, slots: int = 8
) -> AbstractContextManager[Server]:
    """llama.cpp's server, with our context per slot; a draft model makes it draft.

    It takes the number of drafts for all requests alike, not from each.
    """
    if not LLAMA_SERVER.exists():
        raise FileNotFoundError(f"{LLAMA_SERVER} is missing: `make bench` builds it")
    port, threads = free_port(), str(bench.options.threads)
    context = bench.models.config().max_position_embeddings * slots
    command = [
        LLAMA_SERVER, "--model", model, "--host", "127.0.0.1", "--port", str(port),
        "--threads", threads, "--threads-batch", threads, "--parallel", str(slots),
        "--ctx-size", str(context),
    ]  # fmt: skip
    if draft is not None:
        command += [
            "--spec-type", "draft-simple", "--model-draft", draft,
            "--spec-draft-n-max", str(num_drafts), "--threads-draft", threads,
            "--threads-batch-draft", threads,
        ]  # fmt: skip
    return bench.server(command, port, LD_LIBRARY_PATH=str(LLAMA_LIBRARIES))

"""From starting a server's process to the first token over HTTP, and the memory it then holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from benchmarks import machine
from benchmarks.bench import Bench, Recorder, Sample
from benchmarks.launch import launch_bitskip, launch_llama
from benchmarks.options import SEQUENCES
from benchmarks.prompts import random_prompts
from benchmarks.sections.decode import AGREEMENT
from benchmarks.serving import BitSkipDialect, Dialect, LlamaDialect, Server

PROMPT_TOKENS = 16
SERVING_TOKENS = 24

logger = logging.getLogger("bench")


def run(bench: Bench, record: Recorder) -> None:
    """Start both servers in turns, with the model's file in the page cache already."""
    models = bench.models
    checkpoint, gguf = models.synthetic(AGREEMENT), models.gguf(AGREEMENT)
    starts: Mapping[str, tuple[Callable[[], AbstractContextManager[Server]], Dialect]] = {
        "bitskip": (lambda: launch_bitskip(bench, checkpoint), BitSkipDialect(False)),
        "llama.cpp": (lambda: launch_llama(bench, gguf), LlamaDialect()),
    }
    vocab_size = models.config().vocab_size
    for repeat in range(-1, bench.options.repeats):
        prompts = random_prompts(max(SEQUENCES), PROMPT_TOKENS, vocab_size, seed=repeat + 1)
        for system, (start, dialect) in starts.items():
            with start() as server:
                stream = server.wait_for_stream(dialect, prompts[0], 2)
                seconds = stream.arrivals_s[0] - server.started_s
                if repeat < 0:  # The warm-up, after which all files are cached.
                    continue
                record.add(system, "s", Sample(seconds), figure="first token")
                if repeat == bench.options.repeats - 1:
                    tokens = bench.options.tokens(SERVING_TOKENS)
                    server.streams(dialect, prompts, tokens)
                    memory = machine.memory_mib(server.pid)
                    record.add(system, "MiB", Sample(memory["VmRSS"], memory), figure="memory")

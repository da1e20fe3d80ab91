"""Plain greedy decoding of 1, 2, 4 and 8 sequences together, against everybody else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.bench import Bench, Contender, Recorder, Sample
from benchmarks.models import bytes_per_token
from benchmarks.options import SEQUENCES
from benchmarks.prompts import random_prompts
from benchmarks.worker import Worker

AGREEMENT = 0.85
"""Which synthetic checkpoint: plain decoding does not depend on it."""
PROMPT_TOKENS = 16
TOKENS = {1: 128, 2: 96, 4: 64, 8: 48}
"""Tokens per sequence, by the number of sequences."""
SLOW_TOKENS = 8
"""For transformers, which takes as long for these as others for all."""


def run(bench: Bench, record: Recorder) -> None:
    """Alternate all systems, one number of sequences after the other."""
    options, models = bench.options, bench.models
    checkpoint, gguf = models.synthetic(AGREEMENT), models.gguf(AGREEMENT)
    config = models.config()
    with ExitStack() as stack:
        ours = stack.enter_context(bench.engine_worker(checkpoint))
        llama = stack.enter_context(
            bench.worker(
                "llama",
                model=str(gguf),
                threads=options.threads,
                context=config.max_position_embeddings,
                max_sequences=max(SEQUENCES),
            )
        )
        dense = stack.enter_context(
            bench.worker("hugging_face", model=str(checkpoint), threads=options.threads)
        )
        floor = stack.enter_context(
            bench.worker(
                "bandwidth",
                num_bytes=bytes_per_token(config),
                threads=options.threads,
                build=str(options.work / "native"),
            )
        )
        for count in SEQUENCES:
            tokens = options.tokens(TOKENS[count])
            fields: dict[str, Any] = {"sequences": count}
            prompts = _prompts(count, config.vocab_size)
            contenders = [
                Contender(
                    "bitskip", "tok/s", ours, _decode(ours, prompts, tokens, mode="plain"), fields
                ),
                Contender("llama.cpp", "tok/s", llama, _decode(llama, prompts, tokens), fields),
                Contender(
                    "transformers",
                    "tok/s",
                    dense,
                    _decode(dense, prompts, options.tokens(SLOW_TOKENS)),
                    fields,
                ),
            ]
            if count == 1:
                contenders.append(Contender("read only", "passes/s", floor, _read(floor), fields))
            record.alternate(contenders)


def _prompts(count: int, vocab_size: int) -> Callable[[int], list[list[int]]]:
    return lambda repeat: random_prompts(count, PROMPT_TOKENS, vocab_size, seed=repeat + 1)


def _decode(
    worker: Worker, prompts: Callable[[int], list[list[int]]], tokens: int, **how: str
) -> Callable[[int], Sample]:
    def measure(repeat: int) -> Sample:
        answer = worker.call("decode", prompts=prompts(repeat), tokens=tokens, **how)
        return Sample(answer["tokens_per_s"], {"seconds": answer["seconds"]})

    return measure


def _read(worker: Worker) -> Callable[[int], Sample]:
    def measure(_repeat: int) -> Sample:
        answer = worker.call("read", passes=30)
        return Sample(1 / answer["seconds"], {"gb_per_s": answer["gb_per_s"]})

    return measure

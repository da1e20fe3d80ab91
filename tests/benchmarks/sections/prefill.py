"""The time from a prompt of 256 tokens to its first token."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench, Contender, Recorder, Sample
from benchmarks.prompts import random_prompts
from benchmarks.sections.decode import AGREEMENT
from benchmarks.worker import Worker

PROMPT_TOKENS = 256


def run(bench: Bench, record: Recorder) -> None:
    """Alternate ourselves, llama.cpp and transformers."""
    options, models = bench.options, bench.models
    checkpoint, gguf = models.synthetic(AGREEMENT), models.gguf(AGREEMENT)
    config = models.config()
    length = options.tokens(PROMPT_TOKENS)
    with (
        bench.engine_worker(checkpoint) as ours,
        bench.worker(
            "llama",
            model=str(gguf),
            threads=options.threads,
            context=config.max_position_embeddings,
            max_sequences=1,
        ) as llama,
        bench.worker("hugging_face", model=str(checkpoint), threads=options.threads) as dense,
    ):
        systems = {"bitskip": ours, "llama.cpp": llama, "transformers": dense}
        record.alternate(
            [
                Contender(
                    name,
                    "tok/s",
                    worker,
                    _prefill(worker, length, config.vocab_size),
                    {"tokens": length},
                )
                for name, worker in systems.items()
            ]
        )


def _prefill(worker: Worker, length: int, vocab_size: int) -> Callable[[int], Sample]:
    def measure(repeat: int) -> Sample:
        (prompt,) = random_prompts(1, length, vocab_size, seed=repeat + 1)
        seconds = worker.call("prefill", prompt=prompt)["seconds"]
        return Sample(length / seconds, {"seconds": seconds})

    return measure

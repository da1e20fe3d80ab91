"""What a round costs outside the backend: scheduling, bookkeeping, detokenisation."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench, Contender, Recorder, Sample
from benchmarks.prompts import random_prompts
from benchmarks.sections.decode import AGREEMENT
from benchmarks.worker import Worker

PROMPT_TOKENS = 8
TOKENS = 160


def run(bench: Bench, record: Recorder) -> None:
    """The median round of each kind, timed around the core's step and the backend's methods."""
    options, models = bench.options, bench.models
    vocab_size = models.config().vocab_size
    with bench.engine_worker(models.synthetic(AGREEMENT), timed=True) as worker:
        record.alternate(
            [
                Contender(
                    "bitskip",
                    "ms/round",
                    worker,
                    _outside(worker, count, options.tokens(TOKENS), mode, vocab_size),
                    {"sequences": count, "mode": str(mode)},
                )
                for count in (1, 8)
                for mode in ("plain", 3, "auto")
            ]
        )


def _outside(
    worker: Worker, count: int, tokens: int, mode: str | int, vocab_size: int
) -> Callable[[int], Sample]:
    def measure(repeat: int) -> Sample:
        prompts = random_prompts(count, PROMPT_TOKENS, vocab_size, seed=repeat + 1)
        answer = worker.call("decode", prompts=prompts, tokens=tokens, mode=mode)
        round_ms = 1e3 * answer["seconds"] / answer["rounds"]
        return Sample(answer["outside_ms"], {"round_ms": round_ms})

    return measure

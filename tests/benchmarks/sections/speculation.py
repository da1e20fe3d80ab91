"""Our own speculation: what each draft length brings, and whether `auto` finds the best.

The checkpoints are synthetic: random weights, made such that the draft exit's most likely token
is the full model's as often as said. Drafts come from the early exit alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.bench import Bench, Contender, Recorder, Sample
from benchmarks.options import AGREEMENTS, FIXED_DRAFTS, SEQUENCES
from benchmarks.prompts import random_prompts
from benchmarks.worker import Worker

PROMPT_TOKENS = 8
TOKENS = {1: 64, 2: 40, 4: 28, 8: 20}
"""Tokens per sequence and sample, by the number of sequences: a third of a second each."""
TURNS = 3
"""Samples of each mode per repeat: short ones in quick turns, since the machine's pace changes."""
LEARNING_TOKENS = 160
"""Tokens per sequence that `auto` gets to learn this machine's costs before it is measured."""
MODES = ("plain", *FIXED_DRAFTS, "auto")


def run(bench: Bench, record: Recorder) -> None:
    """Alternate all modes; every repeat has prompts of its own, the same for all modes."""
    options, models = bench.options, bench.models
    for agreement in AGREEMENTS:
        checkpoint = models.synthetic(agreement)
        with ExitStack() as stack:
            # `auto` learns from its own rounds, as in a server: not from those of fixed lengths.
            fixed, auto = (stack.enter_context(bench.engine_worker(checkpoint)) for _ in range(2))
            for count in SEQUENCES:
                prompts = _prompts(count, models.config().vocab_size)
                auto.call(
                    "decode",
                    prompts=prompts(-1),
                    tokens=options.tokens(LEARNING_TOKENS),
                    mode="auto",
                )
                tokens = options.tokens(TOKENS[count])
                record.alternate(
                    [
                        Contender(
                            "bitskip",
                            "tok/s",
                            worker,
                            _decode(worker, prompts, tokens, mode),
                            {"agreement": agreement, "sequences": count, "mode": str(mode)},
                        )
                        for mode in MODES
                        for worker in [auto if mode == "auto" else fixed]
                    ],
                    repeats=TURNS * options.repeats,
                    warm_up=False,
                )


def _prompts(count: int, vocab_size: int) -> Callable[[int], list[list[int]]]:
    return lambda repeat: random_prompts(count, PROMPT_TOKENS, vocab_size, seed=repeat + 1)


def _decode(
    worker: Worker, prompts: Callable[[int], list[list[int]]], tokens: int, mode: str | int
) -> Callable[[int], Sample]:
    def measure(repeat: int) -> Sample:
        answer = worker.call("decode", prompts=prompts(repeat), tokens=tokens, mode=mode)
        notes = {
            "acceptance": answer["acceptance"],
            "tokens_per_round": answer["tokens"] / answer["rounds"] / len(prompts(repeat)),
            "drafts_per_round": answer["drafted"] / answer["rounds"] / len(prompts(repeat)),
        }
        return Sample(answer["tokens_per_s"], notes)

    return measure

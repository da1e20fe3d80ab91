"""Our own speculation: what each draft length brings, and whether `auto` finds the best.

The checkpoints are synthetic: random weights, made such that the draft exit's most likely token
is the full model's as often as said. Drafts come from the early exit alone. All modes share one
process: two that do the same differ by 1 % while they live, by where their pages came to lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.bench import Bench, Contender, Recorder, Sample
from benchmarks.options import AGREEMENTS, FIXED_DRAFTS, SEQUENCES
from benchmarks.prompts import random_prompts
from benchmarks.results import Series
from benchmarks.worker import Worker

PROMPT_TOKENS = 8
TOKENS = {1: 64, 2: 40, 4: 28, 8: 20}
"""Tokens per sequence and sample, by the number of sequences: a third of a second each."""
TURNS = 3
"""Samples of each mode per repeat: short ones in quick turns, since the machine's pace changes."""
FINALISTS = 0.9
"""Modes that reach this share of the fastest one's speed are measured on, next to `auto`:"""
FURTHER_TURNS = {1: 24, 2: 12, 4: 6, 8: 3}
"""so often per repeat. The fewer sequences, the more the luck of a few drafts weighs."""
LEARNING_TOKENS = 160
"""Tokens per sequence that `auto` gets to learn this machine's costs before it is measured."""
MODES = ("plain", *FIXED_DRAFTS, "auto")


def run(bench: Bench, record: Recorder) -> None:
    """Alternate all modes; every repeat has prompts of its own, the same for all modes."""
    options, models = bench.options, bench.models
    for agreement in AGREEMENTS:
        checkpoint = models.synthetic(agreement)
        with bench.engine_worker(checkpoint) as worker:
            for count in SEQUENCES:
                prompts = _prompts(count, models.config().vocab_size)
                _decode(worker, prompts, options.tokens(LEARNING_TOKENS), "auto")(-1)
                tokens = options.tokens(TOKENS[count])
                contenders = [
                    Contender(
                        "bitskip",
                        "tok/s",
                        worker,
                        _decode(worker, prompts, tokens, mode),
                        {"agreement": agreement, "sequences": count, "mode": str(mode)},
                    )
                    for mode in MODES
                ]
                turns = TURNS * options.repeats
                series = record.alternate(contenders, turns, warm_up=False)
                record.alternate(
                    finalists(contenders, series),
                    FURTHER_TURNS[count] * options.repeats,
                    warm_up=False,
                    first=turns,
                )


def finalists(contenders: Sequence[Contender], series: Sequence[Series]) -> list[Contender]:
    """Those that could be the fastest, and `auto`."""
    least = FINALISTS * max(own.median for own in series)
    return [
        contender
        for contender, own in zip(contenders, series, strict=True)
        if own.median >= least or own.case["mode"] == "auto"
    ]


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

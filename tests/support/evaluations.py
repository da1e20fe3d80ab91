"""Results of `bitskip eval` with made-up figures that can be computed in the head."""

from __future__ import annotations

import math
from typing import Literal

from engine.evaluation.results import (
    BestDraft,
    Drafting,
    Evaluation,
    ExitResult,
    Machine,
    Method,
    ModelFacts,
    SpeedResult,
    Text,
    TimePerToken,
)


def evaluation(
    num_layers: int = 24,
    exits: tuple[int, ...] = (6, 12, 18, 24),
    batch_sizes: tuple[int, ...] = (1, 8),
    *,
    infinite: tuple[int, ...] = (),
    quick: bool = False,
    num_changed_tokens: int = 0,
    warnings: tuple[str, ...] = (),
) -> Evaluation:
    """Exit e has perplexity 10 + (L − e), and 100 · L / e tokens per second per sequence.

    Of 4 drafts, the one at position p of exit e is accepted in (e / L)^p of the rounds; a fixed
    number n of drafts is 1 + n / 10 times as fast as none, auto 1.35 times.
    """
    return Evaluation(
        model=ModelFacts(
            name="story-24",
            variant="v1",
            num_layers=num_layers,
            hidden_size=64,
            vocab_size=320,
            context=128,
            exit_norm=True,
        ),
        machine=Machine(
            processor="Abacus",
            num_cores=2,
            memory_mib=2048,
            system="Linux x86_64",
            packages={"python": "3.11.0"},
            backend="fake",
            backend_description="made up",
            head_dtype="int8",
            kv_dtype="fp16",
        ),
        text=Text(files=["stories.txt"], num_documents=100, num_tokens=20_000, num_bytes=80_000),
        method=Method(
            quick=quick,
            num_prompts=20,
            num_generated_tokens=1280,
            num_speculations=4,
            num_prompt_tokens=24,
            num_new_tokens=128,
            num_repeats=3 if batch_sizes else 0,
            num_compared_tokens=1000 if batch_sizes else 0,
            num_changed_tokens=num_changed_tokens,
        ),
        exits=[_exit(each, num_layers, each in infinite) for each in exits],
        speeds=[
            speed
            for size in batch_sizes
            for speed in (
                *(_speed(each, size, None, None, num_layers) for each in exits),
                *(
                    _speed(num_layers, size, each, count, num_layers)
                    for each in exits
                    if each < num_layers
                    for count in _COUNTS
                ),
            )
        ],
        best_draft=BestDraft(
            exit_layer=exits[0],
            num_speculations=4,
            speedup=1.4,
            batch_size=1,
            is_measured=bool(batch_sizes),
        ),
        warnings=list(warnings),
    )


_COUNTS: tuple[int | Literal["auto"], ...] = (2, 4, "auto")


def _exit(exit_layer: int, num_layers: int, infinite: bool) -> ExitResult:
    share = exit_layer / num_layers
    is_full = exit_layer == num_layers
    by_position = [share**position for position in (1, 2, 3, 4)]
    return ExitResult(
        exit_layer=exit_layer,
        perplexity=math.inf if infinite else 10.0 + num_layers - exit_layer,
        other_norm_perplexity=None if is_full else 50.0,
        bits_per_byte=1.0,
        agreement=share,
        chance_agreement=0.05,
        drafting=None
        if is_full
        else Drafting(
            acceptance_rate=sum(by_position) / 4,
            mean_acceptance_length=1 + sum(by_position),
            accepted_by_position=by_position,
        ),
    )


def _speed(
    exit_layer: int,
    batch_size: int,
    draft_exit_layer: int | None,
    num_speculations: int | Literal["auto"] | None,
    num_layers: int,
) -> SpeedResult:
    speedup = num_layers / exit_layer
    if num_speculations is not None:
        speedup = 1.35 if num_speculations == "auto" else 1 + num_speculations / 10
    rate = 100.0 * batch_size * speedup
    drafted = num_speculations is not None
    ms = 1000 / rate
    return SpeedResult(
        exit_layer=exit_layer,
        batch_size=batch_size,
        draft_exit_layer=draft_exit_layer,
        num_speculations=num_speculations,
        tokens_per_s=rate,
        samples=[rate * 0.9, rate, rate * 1.1],
        speedup=speedup,
        first_token_ms=12.5 * batch_size,
        prefill_ms=15.0 * batch_size,
        num_tokens=384 * batch_size,
        acceptance_rate=0.5 if drafted else None,
        mean_acceptance_length=3.0 if drafted else None,
        time=TimePerToken(
            draft_layers_ms=0.2 * ms if drafted else 0.0,
            draft_head_ms=0.1 * ms if drafted else 0.0,
            layers_ms=0.4 * ms if drafted else 0.7 * ms,
            head_ms=0.2 * ms,
            outside_ms=0.1 * ms,
        ),
    )

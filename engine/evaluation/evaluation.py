"""`bitskip eval`: everything about a model's exits, measured in one go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.build import LoadedModel, load_model
from engine.checkpoint.inspection import inspect_weights
from engine.checkpoint.loader import load_checkpoint
from engine.config import MAX_SPECULATIONS, EngineConfig, ModelConfig
from engine.errors import ConfigError
from engine.evaluation.credibility import exit_warnings, weight_warnings
from engine.evaluation.machine import describe_machine
from engine.evaluation.results import Evaluation, Method, NumSpeculations, Text
from engine.evaluation.scores import (
    ModelScores,
    chosen_exits,
    prompt_tokens,
    score_model,
    score_other_norm,
)
from engine.evaluation.speed import (
    Sample,
    Setting,
    SpeedBench,
    all_settings,
    count_changed_tokens,
    measure_speeds,
)
from engine.evaluation.summary import (
    best_draft,
    exit_result,
    model_facts,
    speed_results,
    speed_warnings,
)
from engine.evaluation.timing import Clock

MAX_BATCH_SIZE = 256

PhaseProgress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What to measure, and how long; the defaults take some minutes on two cores.

    Raises `ConfigError` for a value that makes no sense.
    """

    exits: tuple[int, ...] = ()
    """Full depth is always among them; none: the quarters of the depth."""
    batch_sizes: tuple[int, ...] = (1, 4, 8)
    """For speeds; none: speeds are not measured."""
    num_speculations: tuple[int, ...] = (2, 4, 8)
    """Drafts per round whose speeds are measured, besides auto; acceptance is of the largest."""
    num_prompts: int = 20
    num_new_tokens: int = 128
    num_repeats: int = 5
    max_documents: int | None = None
    other_norm: bool = True
    """Whether perplexity is measured with the exit norm turned round, too."""
    quick: bool = False
    """Only told, as by `QUICK_PLAN`."""

    def __post_init__(self) -> None:
        for size in self.batch_sizes:
            if not 1 <= size <= MAX_BATCH_SIZE:
                raise ConfigError(f"batch size {size} does not lie in 1..{MAX_BATCH_SIZE}")
        if not self.num_speculations:
            raise ConfigError("num_speculations must name at least one number of drafts")
        for count in self.num_speculations:
            if not 1 <= count <= MAX_SPECULATIONS:
                raise ConfigError(f"num_speculations {count} does not lie in 1..{MAX_SPECULATIONS}")


QUICK_PLAN = EvaluationPlan(
    batch_sizes=(1, 4),
    num_speculations=(4,),
    num_prompts=4,
    num_new_tokens=32,
    num_repeats=2,
    max_documents=10,
    other_norm=False,
    quick=True,
)
"""A first look in a fraction of the time."""


def evaluate(
    path: Path,
    documents: Sequence[str],
    plan: EvaluationPlan,
    *,
    name: str,
    files: Sequence[str] = (),
    backend: str = "auto",
    threads: int | None = None,
    clock: Clock = time.perf_counter,
    progress: PhaseProgress = lambda phase, done, total: None,
) -> Evaluation:
    """Measure the exits of a checkpoint directory on documents.

    `name` and `files` are what the result calls the model and the documents' files. The model is
    loaded twice where the plan wants perplexities with the exit norm turned round. Raises
    `CheckpointError`, `TokenizerError` or `ConfigError`, naming what is wrong.
    """
    config = ModelConfig.from_directory(path)
    exits = chosen_exits(config, plan.exits)
    documents = documents[: plan.max_documents]
    warnings = _weight_warnings(path, progress)
    other_norm: Mapping[int, float] = {}
    if plan.other_norm and len(exits) > 1:
        early = [exit_layer for exit_layer in exits if exit_layer < config.num_layers]
        other_norm = score_other_norm(
            path, documents, early, backend, threads, _phase(progress, "turning the exit norm")
        )
    model = load_model(path, EngineConfig(), backend, threads)
    try:
        scores = score_model(
            model,
            documents,
            exits=exits,
            num_speculations=max(plan.num_speculations),
            num_prompts=plan.num_prompts,
            progress=_phase(progress, "scoring documents"),
        )
        samples = _measure(model, documents, exits, plan, clock, progress)
        machine = describe_machine(model.backend)
    finally:
        model.backend.close()
    speeds = speed_results(samples, config.num_layers)
    method = _method(plan, scores, samples, prompt_tokens(model, documents))
    warnings += exit_warnings(scores, config.vocab_size, config.exit_norm, other_norm)
    warnings += speed_warnings(speeds, method.num_changed_tokens)
    return Evaluation(
        model=model_facts(name, model.config),
        machine=machine,
        text=Text(
            files=list(files),
            num_documents=scores.num_documents,
            num_tokens=scores.num_tokens,
            num_bytes=scores.num_bytes,
        ),
        method=method,
        # Full depth, which always has the norm, was not turned round.
        exits=[
            exit_result(
                score, None if score is scores.exits[-1] else other_norm.get(score.exit_layer)
            )
            for score in scores.exits
        ],
        speeds=speeds,
        best_draft=best_draft(scores, speeds, config),
        warnings=warnings,
    )


def _measure(
    model: LoadedModel,
    documents: Sequence[str],
    exits: Sequence[int],
    plan: EvaluationPlan,
    clock: Clock,
    progress: PhaseProgress,
) -> dict[Setting, list[Sample]]:
    """Samples of every speed that the plan wants."""
    if not plan.batch_sizes:
        return {}
    counts: list[NumSpeculations] = [*sorted(set(plan.num_speculations)), "auto"]
    settings = list(
        all_settings(exits, model.config.num_layers, sorted(set(plan.batch_sizes)), counts)
    )
    return measure_speeds(
        SpeedBench(model, max(plan.batch_sizes), clock),
        settings,
        prompt_tokens(model, documents),
        num_new_tokens=plan.num_new_tokens,
        num_repeats=plan.num_repeats,
        progress=_phase(progress, "measuring speeds"),
    )


def _method(
    plan: EvaluationPlan,
    scores: ModelScores,
    samples: dict[Setting, list[Sample]],
    prompts: Sequence[Sequence[int]],
) -> Method:
    num_changed, num_compared = count_changed_tokens(samples, scores.exits[-1].exit_layer)
    return Method(
        quick=plan.quick,
        num_prompts=min(plan.num_prompts, len(prompts)),
        num_generated_tokens=scores.num_generated_tokens,
        num_speculations=scores.num_speculations,
        num_prompt_tokens=max(map(len, prompts)),
        num_new_tokens=plan.num_new_tokens,
        num_repeats=plan.num_repeats if samples else 0,
        num_compared_tokens=num_compared,
        num_changed_tokens=num_changed,
    )


def _weight_warnings(path: Path, progress: PhaseProgress) -> list[str]:
    with load_checkpoint(path) as checkpoint:
        weights = inspect_weights(checkpoint, _phase(progress, "reading weights"))
    return list(weight_warnings(weights))


def _phase(progress: PhaseProgress, phase: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(phase, done, total)

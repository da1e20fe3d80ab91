"""From what was measured to what a result file says: medians, shares, the best draft exit."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from engine.config import EngineConfig, ModelConfig
from engine.evaluation.draft_exit import best_draft_exit
from engine.evaluation.results import (
    BestDraft,
    Drafting,
    ExitResult,
    ModelFacts,
    SpeedResult,
    TimePerToken,
)
from engine.evaluation.scores import ExitScore, ModelScores
from engine.evaluation.speed import Sample, Setting, median_speedup
from engine.evaluation.timing import TimeSplit

MAX_SPREAD = 0.25
"""Samples of the same work that differ by more tell of a machine that did something else."""


def model_facts(name: str, config: ModelConfig) -> ModelFacts:
    """A model's name and shape."""
    return ModelFacts(
        name=name,
        variant=config.variant,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        exit_norm=config.exit_norm,
    )


def exit_result(score: ExitScore, other_norm: float | None) -> ExitResult:
    """One exit's scores; `other_norm` is its perplexity with the exit norm turned round."""
    drafting = None
    if score.draft_acceptance_rate is not None and score.mean_acceptance_length is not None:
        drafting = Drafting(
            acceptance_rate=score.draft_acceptance_rate,
            mean_acceptance_length=score.mean_acceptance_length,
            accepted_by_position=list(score.accepted_by_position),
        )
    return ExitResult(
        exit_layer=score.exit_layer,
        perplexity=score.perplexity,
        other_norm_perplexity=other_norm,
        bits_per_byte=score.bits_per_byte,
        agreement=score.agreement,
        chance_agreement=score.chance_agreement,
        drafting=drafting,
    )


def speed_results(
    samples: Mapping[Setting, Sequence[Sample]], num_layers: int
) -> list[SpeedResult]:
    """Every setting's medians; full depth without drafts must be among them at each batch size."""
    return [
        _speed_result(setting, taken, samples[Setting(num_layers, setting.batch_size)])
        for setting, taken in samples.items()
    ]


def _speed_result(
    setting: Setting, samples: Sequence[Sample], baseline: Sequence[Sample]
) -> SpeedResult:
    num_drafted = sum(sample.num_drafted for sample in samples)
    num_accepted = sum(sample.num_accepted for sample in samples)
    num_rounds = sum(sample.num_rounds for sample in samples)
    return SpeedResult(
        exit_layer=setting.exit_layer,
        batch_size=setting.batch_size,
        draft_exit_layer=setting.draft_exit_layer,
        num_speculations=setting.num_speculations,
        tokens_per_s=statistics.median(sample.tokens_per_s for sample in samples),
        samples=[sample.tokens_per_s for sample in samples],
        speedup=median_speedup(samples, baseline),
        first_token_ms=1e3 * statistics.median(sample.first_token_s for sample in samples),
        prefill_ms=1e3 * statistics.median(sample.prefill_s for sample in samples),
        num_tokens=sum(sample.num_tokens for sample in samples),
        acceptance_rate=num_accepted / num_drafted if num_drafted else None,
        mean_acceptance_length=1.0 + num_accepted / num_rounds if num_rounds else None,
        time=_time_per_token(samples),
    )


def _time_per_token(samples: Sequence[Sample]) -> TimePerToken:
    """Each part's median: a moment that the machine gave to others spoils one sample's part."""

    def ms(part: Callable[[TimeSplit], float]) -> float:
        return 1e3 * statistics.median(part(each.split) / each.num_tokens for each in samples)

    return TimePerToken(
        draft_layers_ms=ms(lambda split: split.draft_layers_s),
        draft_head_ms=ms(lambda split: split.draft_head_s),
        layers_ms=ms(lambda split: split.layers_s),
        head_ms=ms(lambda split: split.head_s),
        outside_ms=ms(lambda split: split.outside_s),
    )


def best_draft(
    scores: ModelScores, speeds: Sequence[SpeedResult], config: ModelConfig
) -> BestDraft | None:
    """The exit that drafts fastest at the smallest batch size; predicted where none was timed."""
    drafted = [speed for speed in speeds if speed.draft_exit_layer is not None]
    if drafted:
        batch_size = min(speed.batch_size for speed in drafted)
        best = max(
            (speed for speed in drafted if speed.batch_size == batch_size),
            key=lambda speed: speed.speedup,
        )
        assert best.draft_exit_layer is not None and best.num_speculations is not None
        return BestDraft(
            exit_layer=best.draft_exit_layer,
            num_speculations=best.num_speculations,
            speedup=best.speedup,
            batch_size=batch_size,
            is_measured=True,
        )
    predicted = best_draft_exit(scores, config, EngineConfig().draft_vocab_size)
    if predicted is None:
        return None
    return BestDraft(
        exit_layer=predicted.exit_layer,
        num_speculations=predicted.num_speculations,
        speedup=predicted.speedup,
        batch_size=1,
        is_measured=False,
    )


def speed_warnings(speeds: Sequence[SpeedResult], num_changed_tokens: int) -> Iterator[str]:
    """Speeds that are not to be relied on, and drafts that were not lossless."""
    if num_changed_tokens:
        yield (
            f"drafting changed {num_changed_tokens} tokens: it must never; speeds with drafts "
            "are those of other text"
        )
    # With drafts, samples differ for another reason: prompts differ in how well they are drafted.
    plain = [speed for speed in speeds if speed.draft_exit_layer is None]
    uneven = [
        speed for speed in plain if max(speed.samples) > min(speed.samples) * (1 + MAX_SPREAD)
    ]
    if 4 * len(uneven) > len(plain):
        yield (
            f"samples of {len(uneven)} of {len(plain)} speeds without drafts differ by more than "
            f"{MAX_SPREAD:.0%} among themselves: the machine was doing other work, and all speeds "
            "are rough"
        )

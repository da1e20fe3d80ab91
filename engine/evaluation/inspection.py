"""`bitskip inspect`: everything that a checkpoint tells of itself, and whether to believe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.backends.memory import BACKEND_DTYPES, ServingMemory, serving_memory
from engine.backends.protocol import draft_vocabulary
from engine.build import load_model
from engine.checkpoint.end_tokens import with_generation_eos
from engine.checkpoint.inspection import Progress, WeightsReport, inspect_weights
from engine.checkpoint.loader import load_checkpoint
from engine.config import EngineConfig, ModelConfig
from engine.draft_vocabulary import draft_ranking
from engine.errors import TokenizerError
from engine.evaluation.credibility import exit_warnings, weight_warnings
from engine.evaluation.draft_exit import DraftExit, best_draft_exit
from engine.evaluation.scores import ModelScores, score_model, score_other_norm
from engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class InspectedExits:
    """What text tells of a model's exits."""

    report: ModelScores
    """With the final norm before an early exit's head, or without, as config.json says."""
    other_norm: dict[int, float]
    """Exit → perplexity with that turned round."""
    best: DraftExit | None
    """The exit that should draft, by measured acceptance."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A checkpoint's shape, weights and needs, and what of it is not credible."""

    path: Path
    config: ModelConfig
    weights: WeightsReport
    draft_exit_layer: int
    """What serves if nobody says otherwise."""
    num_draft_ids: int
    """Of the draft head."""
    memory: tuple[ServingMemory, ...]
    """By backend that can run it, with default options."""
    exits: InspectedExits | None
    warnings: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether every tensor can be used; other warnings are matters of judgement."""
        return all(tensor.error is None for tensor in self.weights.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        memory = [asdict(each) | {"total": each.total} for each in self.memory]
        weights = self.weights
        sizes = {
            field: sum(getattr(tensor, field) for tensor in weights.tensors)
            for field in ("num_bytes", "unpacked_bytes")
        }
        packed = [each.packed_bytes for each in weights.tensors if each.packed_bytes is not None]
        tensors = [
            asdict(each) | {"trits": each.trits._asdict() if each.trits else None}
            for each in weights.tensors
        ]
        return {
            "path": str(self.path),
            "variant": self.config.variant,
            "config": self.config.to_dict(),
            "is_packed": weights.is_packed,
            **sizes,
            "packed_bytes": sum(packed) if packed else None,
            "tensors": tensors,
            "ignored": list(weights.ignored),
            "suggested_exits": list(self.config.suggested_exits),
            "draft_exit_layer": self.draft_exit_layer,
            "num_draft_ids": self.num_draft_ids,
            "memory": memory,
            "exits": None if self.exits is None else asdict(self.exits),
            "is_usable": self.is_usable,
            "warnings": list(self.warnings),
        }


def inspect_model(path: Path, progress: Progress = lambda done, total: None) -> ModelReport:
    """Look at a checkpoint directory, one tensor at a time; nothing is computed with it.

    Raises `CheckpointError` for what is no model; tensors with values that cannot be used, and a
    tokenizer that cannot, are warnings of the report.
    """
    with load_checkpoint(path) as checkpoint:
        config = with_generation_eos(checkpoint.config, path)
        weights = inspect_weights(checkpoint, progress)
    warnings = list(weight_warnings(weights))
    always, ranking = set(config.eos_token_ids), None
    try:
        tokenizer = Tokenizer.from_directory(path)
        tokenizer.check_vocab(config.vocab_size)
        always |= {*tokenizer.special_ids}
        ranking = draft_ranking(path, tokenizer, config.vocab_size)
        if not config.eos_token_ids and tokenizer.eos_token_id is not None:
            always.add(tokenizer.eos_token_id)
    except TokenizerError as error:
        warnings.append(f"cannot be served: {error}")
    engine = EngineConfig().resolve(config)
    assert engine.draft_exit_layer is not None
    draft_ids = draft_vocabulary(
        config.vocab_size, engine.draft_vocab_size, list(always), ranking
    ).tolist()
    return ModelReport(
        path=path,
        config=config,
        weights=weights,
        draft_exit_layer=engine.draft_exit_layer,
        num_draft_ids=len(draft_ids),
        memory=tuple(serving_memory(name, config, engine, draft_ids) for name in BACKEND_DTYPES),
        exits=None,
        warnings=tuple(warnings),
    )


def with_exits(
    report: ModelReport,
    documents: Sequence[str],
    *,
    exits: Sequence[int] = (),
    backend: str = "auto",
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> ModelReport:
    """The report, and what the documents tell of exits (all of them unless `exits` names some).

    The model is loaded twice, one after the other: as it is, and with the exit norm turned
    round. `progress` counts the documents of both. Raises as `load_model` and `score_model` do.
    """
    config, engine = report.config, EngineConfig()
    chosen = exits or range(1, config.num_layers + 1)
    model = load_model(report.path, engine, backend, threads)
    try:
        scores = score_model(
            model, documents, exits=chosen, progress=lambda done, total: progress(done, 2 * total)
        )
    finally:
        model.backend.close()
    other = score_other_norm(
        report.path,
        documents,
        chosen,
        backend,
        threads,
        lambda done, total: progress(total + done, 2 * total),
    )
    best = best_draft_exit(scores, config, engine.draft_vocab_size)
    found = exit_warnings(scores, config.vocab_size, config.exit_norm, other)
    return replace(
        report,
        exits=InspectedExits(scores, other, best),
        warnings=(*report.warnings, *found),
    )

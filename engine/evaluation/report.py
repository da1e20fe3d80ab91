"""`bitskip eval`: what each exit of a model is worth, as text model and as drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.build import LoadedModel
from engine.errors import ConfigError
from engine.evaluation.acceptance import DraftTally, measure_drafts
from engine.evaluation.perplexity import Progress, score_exits

_PROMPT_TOKENS = 24
_NO_DRAFTS = DraftTally(0, 0, 0, ())


@dataclass(frozen=True, slots=True)
class ExitScore:
    """One exit's figures; the draft figures are None at full depth, or if nothing was drafted."""

    exit_layer: int
    perplexity: float
    bits_per_byte: float
    agreement: float
    """Share of positions where its most likely token is the full model's."""
    chance_agreement: float
    """What that would be if its choices were as they are, but had nothing to do with the text."""
    draft_acceptance_rate: float | None
    mean_acceptance_length: float | None
    """Tokens per verified round, verification's own included."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """All exits, and what they were measured on."""

    num_documents: int
    num_tokens: int
    num_bytes: int
    num_generated_tokens: int
    num_speculations: int
    exits: tuple[ExitScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def evaluate(
    model: LoadedModel,
    documents: Sequence[str],
    *,
    exits: Sequence[int] = (),
    num_speculations: int = 4,
    num_prompts: int = 20,
    num_new_tokens: int = 64,
    progress: Progress = lambda done, total: None,
) -> EvaluationReport:
    """Perplexity and agreement over all documents, and measured greedy draft acceptance.

    Each document is scored from an end-of-text token on, in windows of the trained context.
    Acceptance is measured by the engine itself: it completes the beginnings of the first
    `num_prompts` documents, with `num_speculations` drafts per round from each exit, as far as
    the context goes. Raises `ConfigError` for exits that the model does not have, and when the
    documents have no token to predict.
    """
    if not documents:
        raise ConfigError("there is no document to evaluate on")
    depth = model.config.num_layers
    for exit_layer in exits:
        if not 1 <= exit_layer <= depth:
            raise ConfigError(f"exit {exit_layer} does not lie in 1..{depth}")
    chosen = tuple(sorted({*(exits or model.config.suggested_exits), depth}))
    windows = text_windows(model, documents)
    if not windows:
        raise ConfigError("the documents have no token to predict")
    tallies = score_exits(model.backend, windows, chosen, progress)
    num_bytes = sum(len(document.encode()) for document in documents)
    drafts = {
        exit_layer: _measure_drafts(
            model, documents[:num_prompts], exit_layer, num_speculations, num_new_tokens
        )
        for exit_layer in chosen
        if exit_layer < depth
    }
    drafts[depth] = _NO_DRAFTS
    return EvaluationReport(
        num_documents=len(documents),
        num_tokens=tallies[depth].num_tokens,
        num_bytes=num_bytes,
        # Every exit drafts the same text: counted once.
        num_generated_tokens=max(each.num_generated_tokens for each in drafts.values()),
        num_speculations=num_speculations,
        exits=tuple(
            ExitScore(
                exit_layer=exit_layer,
                perplexity=tallies[exit_layer].perplexity,
                bits_per_byte=tallies[exit_layer].bits_per_byte(num_bytes),
                agreement=tallies[exit_layer].agreement,
                chance_agreement=tallies[exit_layer].chance_agreement(tallies[depth]),
                draft_acceptance_rate=drafts[exit_layer].acceptance_rate,
                mean_acceptance_length=drafts[exit_layer].acceptance_length,
            )
            for exit_layer in chosen
        ),
    )


def text_windows(model: LoadedModel, documents: Sequence[str]) -> list[list[int]]:
    """Token windows; a document longer than the context goes on in the next window."""
    context = model.config.max_position_embeddings
    end = list(model.config.eos_token_ids[:1])
    windows: list[list[int]] = []
    for document in documents:
        tokens = end + model.tokenizer.encode(document, add_special_tokens=False) + end
        # Windows share one token, so that every token but the first is predicted once.
        for start in range(0, len(tokens) - 1, context - 1):
            windows.append(tokens[start : start + context])
    return windows


def _measure_drafts(
    model: LoadedModel,
    documents: Sequence[str],
    exit_layer: int,
    num_speculations: int,
    num_new_tokens: int,
) -> DraftTally:
    """Greedy completions of the documents' beginnings, drafted at `exit_layer`."""
    context = model.config.max_position_embeddings
    num_prompt_tokens = min(_PROMPT_TOKENS, context // 2)
    return measure_drafts(
        model,
        [model.tokenizer.encode(document)[:num_prompt_tokens] for document in documents],
        exit_layer=exit_layer,
        num_speculations=num_speculations,
        num_new_tokens=min(num_new_tokens, context - num_prompt_tokens),
    )

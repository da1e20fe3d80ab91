"""What each exit of a model is worth on a text, as text model and as drafter; no speeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.build import LoadedModel, load_model
from engine.config import EngineConfig, ModelConfig
from engine.errors import ConfigError
from engine.evaluation.acceptance import DraftTally, measure_drafts
from engine.evaluation.perplexity import Progress, score_exits

PROMPT_TOKENS = 24
"""Of a document, where the engine goes on with its beginning."""
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
    accepted_by_position: tuple[float, ...] = ()
    """Share of the rounds in which the first, second … draft was accepted."""


@dataclass(frozen=True, slots=True)
class ModelScores:
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


def score_model(
    model: LoadedModel,
    documents: Sequence[str],
    *,
    exits: Sequence[int] = (),
    num_speculations: int = 4,
    num_prompts: int = 20,
    num_new_tokens: int = 64,
    progress: Progress = lambda done, total: None,
) -> ModelScores:
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
    chosen = chosen_exits(model.config, exits)
    windows = text_windows(model, documents)
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
    return ModelScores(
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
                accepted_by_position=drafts[exit_layer].accepted_by_position,
            )
            for exit_layer in chosen
        ),
    )


def chosen_exits(config: ModelConfig, exits: Sequence[int]) -> tuple[int, ...]:
    """The exits to look at, ascending, full depth among them; by default the quarters.

    Raises `ConfigError` for one that the model does not have.
    """
    for exit_layer in exits:
        if not 1 <= exit_layer <= config.num_layers:
            raise ConfigError(f"exit {exit_layer} does not lie in 1..{config.num_layers}")
    return tuple(sorted({*(exits or config.suggested_exits), config.num_layers}))


def score_other_norm(
    path: Path,
    documents: Sequence[str],
    exits: Sequence[int],
    backend: str = "auto",
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[int, float]:
    """Exit → perplexity with `exit_norm` turned round from what config.json says.

    Loads the model anew. Raises as `load_model` does.
    """
    exit_norm = not ModelConfig.from_directory(path).exit_norm
    turned = load_model(path, EngineConfig(), backend, threads, exit_norm=exit_norm)
    try:
        tallies = score_exits(turned.backend, text_windows(turned, documents), exits, progress)
    finally:
        turned.backend.close()
    return {exit_layer: tally.perplexity for exit_layer, tally in tallies.items()}


def prompt_tokens(model: LoadedModel, documents: Sequence[str]) -> list[list[int]]:
    """The documents' beginnings, for the engine to go on with; half a context long at most."""
    longest = min(PROMPT_TOKENS, model.config.max_position_embeddings // 2)
    return [model.tokenizer.encode(document)[:longest] for document in documents]


def text_windows(model: LoadedModel, documents: Sequence[str]) -> list[list[int]]:
    """Token windows; a document longer than the context goes on in the next window.

    Raises `ConfigError` where there is no token to predict.
    """
    context = model.config.max_position_embeddings
    end = list(model.config.eos_token_ids[:1])
    windows: list[list[int]] = []
    for document in documents:
        tokens = end + model.tokenizer.encode(document, add_special_tokens=False) + end
        # Windows share one token, so that every token but the first is predicted once.
        for start in range(0, len(tokens) - 1, context - 1):
            windows.append(tokens[start : start + context])
    if not windows:
        raise ConfigError("the documents have no token to predict")
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
    return measure_drafts(
        model,
        prompt_tokens(model, documents),
        exit_layer=exit_layer,
        num_speculations=num_speculations,
        num_new_tokens=min(num_new_tokens, context - min(PROMPT_TOKENS, context // 2)),
    )

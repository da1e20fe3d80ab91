"""Which exit should draft: the one with the greatest predicted speed-up."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from engine.config import MAX_SPECULATIONS, ModelConfig
from engine.errors import CheckpointError
from engine.evaluation.scores import ModelScores

ROW_COST = 0.3
"""A further verified row's share of what a first one costs; between 0.1 and 0.7 on CPUs."""


@dataclass(frozen=True, slots=True)
class DraftExit:
    """An exit as a drafter, at its best draft length."""

    exit_layer: int
    num_speculations: int
    speedup: float
    """Predicted, over decoding without drafts."""


def best_draft_exit(
    scores: ModelScores, model: ModelConfig, draft_vocab_size: int
) -> DraftExit | None:
    """The best of the scored exits by its measured acceptance; None if nothing was drafted.

    With k of L layers drafting, γ drafts, the heads' cost h and d and a row's cost c, all in
    units of one pass of one row through all layers, a round costs
    γ(k/L + d) + k/L + (1 − k/L)(1 + cγ) + h(1 + cγ) and brings (1 − α^(γ+1)) / (1 − α) tokens.
    """
    layer_weights = 2 * model.hidden_size * (model.q_size + model.kv_size)
    layer_weights += 3 * model.hidden_size * model.intermediate_size
    # Bits of a weight in the layers: two if ternary; eight in the head.
    weight_bits = 16 if model.is_dense else 2
    per_id = 8 * model.hidden_size / (weight_bits * layer_weights * model.num_layers)
    head = per_id * model.vocab_size
    draft_head = per_id * min(draft_vocab_size, model.vocab_size)
    best: DraftExit | None = None
    for score in scores.exits:
        if score.mean_acceptance_length is None or score.exit_layer >= model.num_layers:
            continue
        alpha = _alpha(score.mean_acceptance_length, scores.num_speculations)
        share = score.exit_layer / model.num_layers
        for count in range(1, MAX_SPECULATIONS + 1):
            tokens = sum(alpha**number for number in range(count + 1))
            rows = 1 + ROW_COST * count
            cost = count * (share + draft_head) + share + (1 - share + head) * rows
            candidate = DraftExit(score.exit_layer, count, tokens * (1 + head) / cost)
            if best is None or candidate.speedup > best.speedup:
                best = candidate
    return best


def _alpha(tokens_per_round: float, num_drafts: int) -> float:
    """The chance of a single draft under which rounds of `num_drafts` bring so many tokens."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if sum(middle**number for number in range(num_drafts + 1)) < tokens_per_round:
            low = middle
        else:
            high = middle
    return low


def save_draft_exit(path: Path, exit_layer: int) -> None:
    """Write `draft_exit_layer` into a checkpoint's config.json, all at once or not at all.

    Raises `CheckpointError` when that file cannot be read or written.
    """
    file = path / "config.json"
    staged = path / ".config.json.partial"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        raw["draft_exit_layer"] = exit_layer
        text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
        staged.write_text(text, encoding="utf-8")
        os.replace(staged, file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: the draft exit cannot be written ({error})") from error

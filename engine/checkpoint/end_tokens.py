"""Which tokens end a text, by what lies beside the weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from engine.config import ModelConfig
from engine.errors import CheckpointError, ConfigError


def with_generation_eos(model: ModelConfig, path: Path) -> ModelConfig:
    """Add the end tokens that generation_config.json names, as transformers would.

    Raises `CheckpointError`, naming the file, if it cannot be read or names no token ids.
    """
    file = path / "generation_config.json"
    if not file.exists():
        return model
    try:
        eos = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    more = [] if eos is None else eos if isinstance(eos, list) else [eos]
    try:
        merged = replace(model, eos_token_ids=(*model.eos_token_ids, *more))
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return replace(merged, eos_token_ids=tuple(dict.fromkeys(merged.eos_token_ids)))

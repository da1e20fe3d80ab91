"""Path and configuration in, a ready engine out: the one place where the parts are joined."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

from engine.async_engine import AsyncEngine
from engine.backends.protocol import Backend
from engine.backends.registry import create_backend
from engine.checkpoint.end_tokens import with_generation_eos
from engine.checkpoint.loader import load_checkpoint
from engine.config import EngineConfig, ModelConfig
from engine.core import Core
from engine.draft_vocabulary import draft_ranking
from engine.intake import Intake
from engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its backend, with the tokenizer that goes with it."""

    config: ModelConfig
    tokenizer: Tokenizer
    backend: Backend


@dataclass(frozen=True, slots=True)
class EngineParts:
    """A core and what it was made of, for whoever drives it: a thread, or `LLM`."""

    core: Core
    intake: Intake
    backend: Backend


def demo_model_path() -> Path:
    """Directory of the demo model that ships with the package."""
    return Path(__file__).parent / "demo"


def load_model(
    path: Path,
    config: EngineConfig,
    backend: str = "auto",
    threads: int | None = None,
    *,
    exit_norm: bool | None = None,
) -> LoadedModel:
    """Load a checkpoint directory onto a backend.

    `exit_norm`, if given, takes the place of what config.json says of it. Raises
    `CheckpointError`, `TokenizerError` or `ConfigError`, naming what is wrong.
    """
    checkpoint = load_checkpoint(path)
    if exit_norm is not None:
        checkpoint.config = replace(checkpoint.config, exit_norm=exit_norm)
    model = with_generation_eos(checkpoint.config, path)
    tokenizer = Tokenizer.from_directory(path)
    tokenizer.check_vocab(model.vocab_size)
    if not model.eos_token_ids and tokenizer.eos_token_id is not None:
        model = replace(model, eos_token_ids=(tokenizer.eos_token_id,))
    loaded = create_backend(
        backend,
        checkpoint,
        draft_vocab_size=config.draft_vocab_size,
        always_draft_ids=sorted({*model.eos_token_ids, *tokenizer.special_ids}),
        draft_ranking=draft_ranking(path, tokenizer, model.vocab_size),
        threads=threads,
        head_dtype=config.head_dtype,
        kv_dtype=config.kv_dtype,
        dense_dtype=config.dense_dtype,
    )
    return LoadedModel(model, tokenizer, loaded)


def join_parts(model: LoadedModel, config: EngineConfig) -> EngineParts:
    """Put a core over a loaded model; the backend's K/V is allocated anew.

    Raises `ConfigError` when the configuration does not fit the model.
    """
    resolved = config.resolve(model.config)
    core = Core(model.backend, resolved, time.monotonic)
    intake = Intake(model.config, resolved, model.tokenizer, random.SystemRandom(), time.monotonic)
    return EngineParts(core, intake, model.backend)


def build_parts(
    path: Path,
    config: EngineConfig | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> EngineParts:
    """Load and join; raises as `load_model` and `join_parts` do."""
    config = config or EngineConfig()
    # Resolved first: an impossible configuration should not wait for gigabytes to load.
    config.resolve(ModelConfig.from_directory(path))
    return join_parts(load_model(path, config, backend, threads), config)


def build_engine(
    path: Path,
    engine_config: EngineConfig | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> AsyncEngine:
    """An engine for an event loop, loaded but not started; raises as `build_parts`."""
    parts = build_parts(path, engine_config, backend, threads)
    return AsyncEngine(parts.core, parts.intake, parts.backend)

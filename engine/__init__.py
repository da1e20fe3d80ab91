"""BitSkip's engine: self-speculative decoding for early-exit, ternary-weight language models.

    from engine import LLM, SamplingParams

    with LLM() as llm:
        print(llm.generate("Once upon a time", SamplingParams(max_tokens=80))[0].text)

Importing this package is light: the names below are loaded when they are first used, and
torch only by the reference backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.async_engine import AsyncEngine, EngineStatus, OutputStream
    from engine.config import EngineConfig, ModelConfig
    from engine.llm import LLM
    from engine.types import SamplingParams, SpeculativeParams

__version__ = "0.1.0"

_HOMES = {
    "AsyncEngine": "engine.async_engine",
    "EngineStatus": "engine.async_engine",
    "OutputStream": "engine.async_engine",
    "EngineConfig": "engine.config",
    "ModelConfig": "engine.config",
    "LLM": "engine.llm",
    "SamplingParams": "engine.types",
    "SpeculativeParams": "engine.types",
}

__all__ = [
    "LLM",
    "AsyncEngine",
    "EngineConfig",
    "EngineStatus",
    "ModelConfig",
    "OutputStream",
    "SamplingParams",
    "SpeculativeParams",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

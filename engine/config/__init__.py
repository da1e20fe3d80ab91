"""Frozen configuration: what a model is, and how an engine runs it.

Both classes are resolved once, validated on construction, and never changed afterwards;
`dataclasses.replace` makes a variation.
"""

from engine.config.engine import MAX_SPECULATIONS, EngineConfig
from engine.config.model import ModelConfig
from engine.config.numerics import Hadamard, RopeScaling

__all__ = ["MAX_SPECULATIONS", "EngineConfig", "Hadamard", "ModelConfig", "RopeScaling"]

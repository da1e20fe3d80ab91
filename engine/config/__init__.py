"""Frozen configuration: what a model is, and how an engine runs it.

Both classes are resolved once, validated on construction, and never changed afterwards;
`dataclasses.replace` makes a variation.
"""

from engine.config.engine import ELEMENT_BYTES, MAX_SPECULATIONS, EngineConfig
from engine.config.model import ModelConfig
from engine.config.numerics import PACKED_MODEL_TYPE, Hadamard, RopeScaling

__all__ = [
    "ELEMENT_BYTES",
    "MAX_SPECULATIONS",
    "PACKED_MODEL_TYPE",
    "EngineConfig",
    "Hadamard",
    "ModelConfig",
    "RopeScaling",
]

"""The models that random histories run on: exact hashing, and real ternary arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from engine.backends.protocol import Backend
from engine.config import ModelConfig
from support.backend_variants import NATIVE, REFERENCE
from support.engine_runs import Model
from support.fake_backend import FakeBackend, fake_config
from support.letters import letters_tokenizer
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.oracle import FromScratch
from support.variants import VARIANTS

Family = Literal["fake", "reference", "cpu"]

FAKE_VOCAB, REAL_VOCAB = 48, 72
EOS_BIAS = 0.6
"""Makes EOS, a high id, likely enough for completions to end before their limit."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model of a family; every field changes what drafting is like.

    `repeats` makes text that repeats itself, for n-grams to find (fake models only). The last two
    are the native backend's, and change nothing at all.
    """

    agreement: float = 0.8
    repeats: bool = False
    draft_vocab_size: int | None = None
    variant: str = "v1"
    """A key of `VARIANTS`; fake models have none."""
    threads: int = 1
    isa: str = "scalar"


def num_layers(family: Family) -> int:
    """Depth of the family's models."""
    return 6 if family == "fake" else 4


@cache
def make_model(family: Family, spec: ModelSpec) -> Model:
    """The model of a specification; one object each, so that its oracle remembers."""
    vocab_size = FAKE_VOCAB if family == "fake" else REAL_VOCAB
    return Model(
        _config(family, spec),
        letters_tokenizer(vocab_size),
        lambda: _make_backend(family, spec),
        _scratch(family, replace(spec, draft_vocab_size=None, threads=1, isa="scalar")),
    )


@cache
def _scratch(family: Family, spec: ModelSpec) -> FromScratch:
    """The draft vocabulary is nothing to the oracle: models that differ in it share one."""
    backend = _make_backend(family, spec, keep_log=False)
    return FromScratch(lambda: backend)


def _config(family: Family, spec: ModelSpec) -> ModelConfig:
    if family == "fake":
        return fake_config(FAKE_VOCAB, num_layers(family), 160, (FAKE_VOCAB - 1,))
    return tiny_config(
        num_layers=num_layers(family),
        vocab_size=REAL_VOCAB,
        eos_token_ids=(REAL_VOCAB - 1,),
        **VARIANTS[spec.variant],
    )


def _make_backend(family: Family, spec: ModelSpec, keep_log: bool = True) -> Backend:
    config = _config(family, spec)
    if family == "fake":
        return FakeBackend(
            config,
            spec.agreement,
            spec.draft_vocab_size,
            logit_bias={config.eos_token_ids[0]: EOS_BIAS},
            context_tokens=1 if spec.repeats else None,
            keep_log=keep_log,
        )
    precision = REFERENCE[0] if family == "reference" else NATIVE[0]
    return precision.make(
        MemoryCheckpoint(config, seed=5, agreement_after=1, damping=1.0 - spec.agreement),
        isa=spec.isa,
        threads=spec.threads,
        draft_vocab_size=spec.draft_vocab_size or REAL_VOCAB,
        always_draft_ids=config.eos_token_ids,
        # Frequent ids lie anywhere.
        draft_ranking=sorted(range(REAL_VOCAB), key=lambda index: index * 7 % REAL_VOCAB),
    )

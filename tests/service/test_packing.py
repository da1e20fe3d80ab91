"""Packing a model changes its size, and no token that it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.checkpoint.packing import pack_checkpoint
from engine.config import EngineConfig
from engine.llm import LLM
from engine.types import SamplingParams
from support.served_process import write_model
from support.variants import POWERS_OF_TWO, VARIANTS


@pytest.mark.parametrize(
    ("variant", "exit_layer"),
    [("v1", 2), ("v1", None), ("v2", None), ("v2-quantise-first", 2), ("v3", 2)],
)
def test_packing_changes_no_token(tmp_path: Path, variant: str, exit_layer: int | None) -> None:
    model = write_model(tmp_path / "model", **POWERS_OF_TWO, **VARIANTS[variant])
    summary = pack_checkpoint(model, tmp_path / "packed")
    assert summary.packed_bytes < summary.source_bytes / 2
    greedy = SamplingParams(
        max_tokens=24, exit_layer=exit_layer, logprobs=3, ignore_eos=True, temperature=0.0
    )
    params = [greedy, replace(greedy, temperature=1.0, seed=5)]
    answers = []
    for path in (model, tmp_path / "packed"):
        # A fixed number: what the controller drafts depends on the clock, and shows as sources.
        config = EngineConfig(kv_cache_tokens=4096, num_speculations=3)
        with LLM(path, config, threads=1) as llm:
            generations = llm.generate(["Once upon a time"] * 2, params)
            answers.append([generation.choices[0].tokens for generation in generations])
    assert [len(tokens) for tokens in answers[0]] == [24, 24]
    assert answers[0] == answers[1]

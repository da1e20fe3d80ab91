"""Requests at the edge of what the context and the K/V pool hold are answered like any other."""

from __future__ import annotations

import pytest

from engine.config import EngineConfig
from engine.types import SamplingParams, SpeculativeParams
from support.engine_runs import EngineRun, Submission, differences
from support.history_models import ModelSpec, make_model

CONTEXT = 24
PROMPT = tuple(range(1, CONTEXT + 1))


@pytest.mark.parametrize("block_size", [1, 4, 5, 32])
@pytest.mark.parametrize("max_tokens", [0, 1, 2, 9, CONTEXT - 1, None])
def test_a_pool_of_one_context_answers_whatever_fits_the_context(
    block_size: int, max_tokens: int | None
) -> None:
    model = make_model("fake", ModelSpec(agreement=0.9))
    config = EngineConfig(
        max_model_len=CONTEXT, kv_cache_tokens=CONTEXT, block_size=block_size, max_num_seqs=4
    )
    run = EngineRun(model, model.make_backend(), config)
    params = [
        SamplingParams(
            max_tokens=max_tokens,
            seed=seed,
            ignore_eos=True,
            prompt_logprobs=1 if max_tokens == 0 or seed else None,
            speculative=SpeculativeParams(num_speculations=seed),
        )
        for seed in (0, 3, 16)
    ]
    prompt = PROMPT[: CONTEXT - max_tokens] if max_tokens is not None else PROMPT[:7]
    submissions = [Submission(prompt, each) for each in params]
    answers = run.answer(submissions)
    assert list(differences(run, submissions, answers)) == []

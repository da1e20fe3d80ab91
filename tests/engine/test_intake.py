"""From a prompt and its parameters to choices: what is refused, and what is made of the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine.build import EngineParts
from engine.errors import ContextLengthError, InvalidRequestError
from engine.sampling.noise import choice_seed
from engine.types import DraftMethod, SamplingParams, SpeculativeParams
from support.engine_parts import Ledger, make_parts, run_to_end
from support.fake_backend import FakeBackend, fake_config

CONFIG = fake_config(vocab_size=64, num_layers=6, max_position_embeddings=32, eos_token_ids=(60,))


@pytest.fixture
def parts() -> EngineParts:
    return make_parts(FakeBackend(CONFIG, agreement=0.8), draft_exit_layer=2)


def speculative(**fields: Any) -> SamplingParams:
    exit_layer = fields.pop("answering", None)
    return SamplingParams(exit_layer=exit_layer, speculative=SpeculativeParams(**fields))


REFUSED: dict[str, tuple[list[int], SamplingParams, str]] = {
    "empty prompt": ([], SamplingParams(), "prompt"),
    "token too high": ([1, 64], SamplingParams(), "prompt"),
    "token negative": ([1, -1], SamplingParams(), "prompt"),
    "max_tokens": ([1], SamplingParams(max_tokens=-1), "max_tokens"),
    "min_tokens": ([1], SamplingParams(min_tokens=-1), "min_tokens"),
    "min over max": ([1], SamplingParams(min_tokens=5, max_tokens=4), "min_tokens"),
    "NaN": ([1], SamplingParams(temperature=math.nan), "temperature"),
    "infinite": ([1], SamplingParams(temperature=math.inf), "temperature"),
    "cold": ([1], SamplingParams(temperature=-0.1), "temperature"),
    "top_p 0": ([1], SamplingParams(top_p=0.0), "top_p"),
    "top_p NaN": ([1], SamplingParams(top_p=math.nan), "top_p"),
    "top_k": ([1], SamplingParams(top_k=-1), "top_k"),
    "min_p": ([1], SamplingParams(min_p=1.5), "min_p"),
    "presence": ([1], SamplingParams(presence_penalty=2.5), "presence_penalty"),
    "frequency": ([1], SamplingParams(frequency_penalty=-2.5), "frequency_penalty"),
    "repetition": ([1], SamplingParams(repetition_penalty=0.0), "repetition_penalty"),
    "bias id": ([1], SamplingParams(logit_bias={64: 1.0}), "logit_bias"),
    "bias NaN": ([1], SamplingParams(logit_bias={1: math.nan}), "logit_bias"),
    "bias range": ([1], SamplingParams(logit_bias={1: 101.0}), "logit_bias"),
    "stop token": ([1], SamplingParams(stop_token_ids=(64,)), "stop_token_ids"),
    "empty stop": ([1], SamplingParams(stop=("a", "")), "stop"),
    "seed": ([1], SamplingParams(seed=1 << 64), "seed"),
    "n": ([1], SamplingParams(n=0), "n"),
    "logprobs": ([1], SamplingParams(logprobs=-1), "logprobs"),
    "prompt_logprobs": ([1], SamplingParams(prompt_logprobs=-1), "prompt_logprobs"),
    "exit 0": ([1], SamplingParams(exit_layer=0), "exit_layer"),
    "exit 99": ([1], SamplingParams(exit_layer=99), "exit_layer"),
    "draft exit 0": ([1], speculative(exit_layer=0), "speculative.exit_layer"),
    "draft exit full": ([1], speculative(exit_layer=6), "speculative.exit_layer"),
    "draft = answer": ([1], speculative(exit_layer=3, answering=3), "speculative.exit_layer"),
    "17 drafts": ([1], speculative(num_speculations=17), "speculative.num_speculations"),
    "-1 drafts": ([1], speculative(num_speculations=-1), "speculative.num_speculations"),
    "n-gram depth": (
        [1],
        speculative(method=DraftMethod.NGRAM, exit_layer=2),
        "speculative.exit_layer",
    ),
    "early exit of 1": (
        [1],
        speculative(method=DraftMethod.EARLY_EXIT, answering=1),
        "speculative.method",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_their_field(parts: EngineParts, name: str) -> None:
    prompt, params, field = REFUSED[name]
    with pytest.raises(InvalidRequestError) as raised:
        parts.intake.make_requests("r", prompt, params)
    assert raised.value.param == field
    assert field.split(".")[-1] in str(raised.value)


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "field"),
    [(33, 1, "prompt"), (33, 0, "prompt"), (32, 1, "max_tokens"), (30, 3, "max_tokens")],
)
def test_what_the_context_cannot_hold(
    parts: EngineParts, num_prompt: int, max_tokens: int, field: str
) -> None:
    with pytest.raises(ContextLengthError, match="32 tokens") as raised:
        parts.intake.make_requests("r", [1] * num_prompt, SamplingParams(max_tokens=max_tokens))
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", field)


def test_as_many_tokens_as_fit_needs_room_for_one(parts: EngineParts) -> None:
    with pytest.raises(ContextLengthError) as raised:
        parts.intake.make_requests("r", [1] * 32, SamplingParams(max_tokens=None))
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "prompt")
    (request,) = parts.intake.make_requests("r", [1] * 31, SamplingParams(max_tokens=None))
    assert request.max_tokens == 1


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(32, 0), (31, 1), (1, 31)])
def test_the_whole_context_can_be_used(
    parts: EngineParts, num_prompt: int, max_tokens: int
) -> None:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    parts.core.add(parts.intake.make_requests("r", [1] * num_prompt, params))
    assert len(run_to_end(parts.core).token_ids("r")) == max_tokens


def test_defaults_come_from_the_model(parts: EngineParts) -> None:
    (request,) = parts.intake.make_requests("r", [1], SamplingParams())
    assert (request.exit_layer, request.eos_token_ids) == (6, frozenset({60}))
    assert request.leader is None
    (request,) = parts.intake.make_requests("r", [1], SamplingParams(ignore_eos=True))
    assert request.eos_token_ids == frozenset()


def test_the_text_is_indexed_where_ngrams_may_draft(parts: EngineParts) -> None:
    (request,) = parts.intake.make_requests("r", [1], SamplingParams())
    assert request.ngrams is not None
    early_exit = SpeculativeParams(method=DraftMethod.EARLY_EXIT)
    (request,) = parts.intake.make_requests("r", [1], SamplingParams(speculative=early_exit))
    assert request.ngrams is None
    exact = SpeculativeParams(num_speculations=3)
    (request,) = parts.intake.make_requests("r", [1], SamplingParams(speculative=exact))
    assert request.ngrams is None
    (request,) = parts.intake.make_requests("r", [1, 2, 1, 2], speculative(answering=2))
    assert request.ngrams is not None and len(request.ngrams) == 4


def test_choices_follow_their_leader_and_differ_in_seed(parts: EngineParts) -> None:
    requests = parts.intake.make_requests("r", [1], SamplingParams(n=3, seed=5))
    assert [r.index for r in requests] == [0, 1, 2]
    assert [r.leader for r in requests] == [None, requests[0], requests[0]]
    assert [r.sampling.seed for r in requests] == [choice_seed(5, i) for i in range(3)]
    assert len({r.sampling.seed for r in requests}) == 3


def test_a_seed_is_drawn_where_none_is_given(parts: EngineParts) -> None:
    seeds = {
        request.sampling.seed
        for _ in range(3)
        for request in parts.intake.make_requests("r", [1], SamplingParams(n=2))
    }
    assert len(seeds) == 6 and all(0 <= seed < 1 << 53 for seed in seeds)


@pytest.mark.parametrize("seed", [None, 11, -3])
def test_each_choice_replays_alone_with_the_seed_that_it_reported(
    parts: EngineParts, seed: int | None
) -> None:
    def completions(name: str, params: SamplingParams) -> Ledger:
        parts.core.add(parts.intake.make_requests(name, [3, 1, 4], params))
        return run_to_end(parts.core)

    together = completions("all", SamplingParams(n=4, max_tokens=12, seed=seed))
    texts = [together.token_ids("all", index) for index in range(4)]
    assert len(set(map(tuple, texts))) == 4
    for index in range(4):
        metrics = together.last("all", index).metrics
        assert metrics is not None
        alone = completions(f"r{index}", SamplingParams(max_tokens=12, seed=metrics.seed))
        assert alone.token_ids(f"r{index}") == texts[index]

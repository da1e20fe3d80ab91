"""The in-process API: prompts in, generations out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.errors import InvalidRequestError
from engine.llm import LLM
from engine.types import FinishReason, SamplingParams, TokenSource
from support.engine_parts import char_tokenizer, make_parts
from support.fake_backend import FakeBackend, fake_config

CONFIG = fake_config(vocab_size=64, num_layers=4, max_position_embeddings=64, eos_token_ids=(60,))
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
TOKENIZER = char_tokenizer(64)
PROMPT = [1, 2, 3]
TEXT = TOKENIZER.decode(PROMPT)


@pytest.fixture
def llm() -> LLM:
    return LLM.from_parts(make_parts(FakeBackend(CONFIG, agreement=0.8), draft_exit_layer=2))


def test_every_form_of_prompt_is_understood(llm: LLM) -> None:
    (expected,) = llm.generate(PROMPT, GREEDY)
    assert expected.prompt_token_ids == PROMPT
    for prompts in (TEXT, [TEXT], tuple(PROMPT), [PROMPT], [tuple(PROMPT)]):
        (generation,) = llm.generate(prompts, GREEDY)
        assert generation == replace(expected, choices=generation.choices)
        assert generation.choices[0].token_ids == expected.choices[0].token_ids
    mixed = llm.generate([TEXT, [4, 5], PROMPT], GREEDY)
    assert [g.prompt_token_ids for g in mixed] == [PROMPT, [4, 5], PROMPT]
    assert mixed[0].text == mixed[2].text == expected.text != mixed[1].text
    assert llm.generate([], GREEDY) == []


def test_a_batch_is_answered_as_each_prompt_alone(llm: LLM) -> None:
    prompts = [[i, i + 1, i + 2] for i in range(10)]
    params = [SamplingParams(max_tokens=3 + i, seed=i, exit_layer=1 + i % 4) for i in range(10)]
    batched = llm.generate(prompts, params)
    for prompt, each, generation in zip(prompts, params, batched, strict=True):
        (alone,) = llm.generate(prompt, each)
        assert alone.choices[0].token_ids == generation.choices[0].token_ids
        assert generation.prompt_token_ids == prompt
        metrics = generation.choices[0].metrics
        assert metrics is not None and metrics.exit_layer == each.exit_layer


def test_choices_come_in_order_with_all_that_belongs_to_them(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=2, max_tokens=5, logprobs=2, ignore_eos=True)
    (generation,) = llm.generate(TEXT, params)
    assert [choice.index for choice in generation.choices] == [0, 1, 2]
    assert generation.text == generation.choices[0].text
    for choice in generation.choices:
        assert choice.finish_reason is FinishReason.LENGTH
        assert choice.text == llm.tokenizer.decode(choice.token_ids)
        assert choice.metrics is not None and choice.metrics.num_generated_tokens == 5
        assert choice.tokens[0].source is TokenSource.PLAIN
        for token in choice.tokens:
            assert token.logprobs is not None and token.logprobs.token_id == token.token_id
            assert len(token.logprobs.top) == 2
    assert len({choice.text for choice in generation.choices}) == 3


def test_prompts_are_scored_on_request(llm: LLM) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    scored, plain = llm.generate([PROMPT, PROMPT], [params, GREEDY])
    assert scored.prompt_logprobs is not None and scored.prompt_logprobs[0] is None
    assert [p.token_id for p in scored.prompt_logprobs[1:] if p] == PROMPT[1:]
    assert scored.choices[0].tokens == []
    assert plain.prompt_logprobs is None


def test_stop_strings_are_reported(llm: LLM) -> None:
    (generation,) = llm.generate(PROMPT, GREEDY)
    stop = generation.text[2:4]
    (stopped,) = llm.generate(PROMPT, replace(GREEDY, stop=(stop,)))
    choice = stopped.choices[0]
    assert (choice.finish_reason, choice.stop_reason) == (FinishReason.STOP, stop)
    assert stopped.text == generation.text[: generation.text.index(stop)]


def test_nothing_runs_when_one_prompt_is_refused(llm: LLM) -> None:
    backend = llm._parts.backend
    assert isinstance(backend, FakeBackend)
    with pytest.raises(InvalidRequestError) as raised:
        llm.generate([PROMPT, PROMPT], [GREEDY, replace(GREEDY, exit_layer=9)])
    assert raised.value.param == "exit_layer"
    with pytest.raises(InvalidRequestError):
        llm.generate([PROMPT, []], GREEDY)
    with pytest.raises(ValueError, match="1 params for 2 prompts"):
        llm.generate([PROMPT, PROMPT], [GREEDY])
    assert backend.counters.num_sweeps == 0
    assert not llm._parts.core.has_work


def test_default_parameters(llm: LLM) -> None:
    (generation,) = llm.generate(PROMPT)
    assert 0 < len(generation.choices[0].tokens) <= 16


def test_an_interrupted_call_leaves_nothing_to_the_next(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a notebook, in the middle of a round."""
    (expected,) = llm.generate(PROMPT, GREEDY)
    backend = llm._parts.backend
    head = backend.head

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "head", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT, [4, 5]], GREEDY)
    monkeypatch.setattr(backend, "head", head)
    (again,) = llm.generate(PROMPT, GREEDY)
    assert again.text == expected.text
    assert llm._parts.core.cache.usage_ratio == 0.0


def test_what_it_is_made_of_can_be_asked(llm: LLM) -> None:
    assert llm.model_config is CONFIG
    assert llm.tokenizer.encode(TEXT) == PROMPT


def test_leaving_the_context_closes_the_backend() -> None:
    backend = FakeBackend(CONFIG)
    with LLM.from_parts(make_parts(backend)) as llm:
        llm.generate(PROMPT, GREEDY)
    with pytest.raises(AssertionError, match="after close"):
        llm.generate(PROMPT, GREEDY)

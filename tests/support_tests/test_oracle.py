"""The oracle applies the rules of a completion, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.types import FinishReason, SamplingParams
from support.fake_backend import FakeBackend, fake_config
from support.oracle import FromScratch, Logits, OracleResult, naive_completion

CONFIG = fake_config(vocab_size=26, eos_token_ids=(25,))
PROMPT = [3, 1, 4, 1, 5]


class GreedyState:
    """Remembers what it was told, for a sampler that only takes the best."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], eos: tuple[int, ...], seed: int
    ) -> None:
        self.start = len(prompt)
        self.tokens: list[int] = []

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)


def greedy(logits: Logits, state: Any, position: int) -> int:
    assert position == state.start + len(state.tokens)
    return int(logits.argmax())


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(ord("a") + token) for token in tokens)


def make_backend() -> FakeBackend:
    return FakeBackend(CONFIG)


def complete(
    params: SamplingParams,
    eos: tuple[int, ...] = (),
    max_model_len: int = 100,
    model: FromScratch | None = None,
) -> OracleResult:
    return naive_completion(
        model or make_backend,
        PROMPT,
        params,
        0,
        sample=greedy,
        new_state=GreedyState,
        exit_layer=4,
        eos_token_ids=eos,
        max_model_len=max_model_len,
        text_of=letters,
    )


PLAIN = complete(SamplingParams(max_tokens=12))
TEXT = letters(PLAIN.tokens)


def first_of(token: int) -> int:
    return PLAIN.tokens.index(token)


def test_tokens_are_the_best_of_logits_from_scratch() -> None:
    assert len(PLAIN.tokens) == len(PLAIN.logits) == 12
    assert PLAIN.finish_reason == FinishReason.LENGTH and PLAIN.stop_reason is None
    assert len(set(PLAIN.tokens)) > 3
    scratch = FromScratch(make_backend)
    for index, token in enumerate(PLAIN.tokens):
        logits = scratch.logits([*PROMPT, *PLAIN.tokens[:index]], 4)
        np.testing.assert_array_equal(logits, PLAIN.logits[index])
        assert token == int(logits.argmax())


def test_lengths_are_limited_by_the_context_too() -> None:
    assert complete(SamplingParams(max_tokens=None), max_model_len=12).tokens == PLAIN.tokens[:7]
    assert complete(SamplingParams(max_tokens=0)) == OracleResult((), FinishReason.LENGTH, None, ())


def test_eos_and_stop_tokens_end_a_completion_and_belong_to_it() -> None:
    token = PLAIN.tokens[4]
    end = first_of(token) + 1
    by_eos = complete(SamplingParams(max_tokens=12), eos=(token,))
    assert (by_eos.tokens, by_eos.finish_reason, by_eos.stop_reason) == (
        PLAIN.tokens[:end],
        FinishReason.STOP,
        None,
    )
    by_stop = complete(SamplingParams(max_tokens=12, stop_token_ids=(token,)))
    assert (by_stop.tokens, by_stop.stop_reason) == (PLAIN.tokens[:end], token)
    ignored = complete(SamplingParams(max_tokens=12, ignore_eos=True), eos=(token,))
    assert ignored.tokens == PLAIN.tokens


@pytest.mark.parametrize("min_tokens", [0, 6, 7])
def test_stop_strings_count_from_min_tokens_on(min_tokens: int) -> None:
    stop = TEXT[4:6]
    assert TEXT.index(stop) == 4 and stop not in TEXT[5:]
    result = complete(SamplingParams(max_tokens=12, min_tokens=min_tokens, stop=("?", stop)))
    if min_tokens <= 6:
        assert (result.tokens, result.stop_reason) == (PLAIN.tokens[:6], stop)
    else:
        assert (result.tokens, result.stop_reason) == (PLAIN.tokens, None)


def test_the_stop_string_that_starts_first_wins() -> None:
    short, long = TEXT[5], TEXT[3:6]
    assert short not in TEXT[:5]
    result = complete(SamplingParams(max_tokens=12, stop=(short, long)))
    assert (len(result.tokens), result.stop_reason) == (6, long)


def test_logits_are_worked_out_once_and_cannot_be_changed() -> None:
    made: list[FakeBackend] = []

    def counted() -> FakeBackend:
        made.append(FakeBackend(CONFIG))
        return made[-1]

    scratch = FromScratch(counted)
    params = SamplingParams(max_tokens=12)
    first, second = complete(params, model=scratch), complete(params, model=scratch)
    assert first.tokens == second.tokens == PLAIN.tokens
    assert len(made) == 12
    with pytest.raises(ValueError, match="read-only"):
        first.logits[0][0] = 0.0

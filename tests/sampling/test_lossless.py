"""Speculation in miniature: a toy model, its worse draft, and the tokens that must not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.sampling import SamplingState, sample
from engine.types import SamplingParams

VOCAB_SIZE = 24
DRAFT_IDS = np.array([*range(18), 20], dtype=np.int64)
EOS = (20,)
PROMPT: tuple[int, ...] = (3, 1, 4, 1, 5)
SEED = 99
LENGTH = 60

Accept = Callable[[Sequence[int], Sequence[int]], int]


def target_logits(tokens: Sequence[int]) -> NDArray[np.float32]:
    rng = np.random.default_rng([len(tokens), *tokens[-2:]])
    return rng.normal(scale=2.0, size=VOCAB_SIZE).astype(np.float32)


def draft_logits(tokens: Sequence[int]) -> NDArray[np.float32]:
    error = np.random.default_rng([7, len(tokens), *tokens[-2:]]).normal(scale=0.2, size=VOCAB_SIZE)
    return (target_logits(tokens) + error).astype(np.float32)[DRAFT_IDS]


def agreed(drafts: Sequence[int], targets: Sequence[int]) -> int:
    """The rule: a draft stands while it, and all before it, are verification's own tokens."""
    pairs = zip(drafts, targets, strict=False)
    return next((i for i, (draft, target) in enumerate(pairs) if draft != target), len(drafts))


def plain(params: SamplingParams) -> list[int]:
    state = SamplingState(params, PROMPT, EOS, SEED)
    tokens: list[int] = [*PROMPT]
    while state.num_generated < LENGTH:
        token = sample(target_logits(tokens), state, len(tokens))
        assert token is not None
        state.append(token)
        tokens.append(token)
    return tokens


def speculative(
    params: SamplingParams,
    num_drafts: int,
    accept: Accept = agreed,
    forget_drafts: bool = False,
    shift: int = 0,
) -> tuple[list[int], float]:
    """The tokens, and the accepted share of the drafts; the keywords are ways to be wrong."""
    state = SamplingState(params, PROMPT, EOS, SEED)
    tokens: list[int] = [*PROMPT]
    num_drafted = num_accepted_total = 0
    while state.num_generated < LENGTH:
        drafts: list[int] = []
        while len(drafts) < num_drafts:
            known = [*tokens, *drafts]
            draft = sample(draft_logits(known), state, len(known) + shift, drafts, DRAFT_IDS)
            if draft is None:
                break
            drafts.append(draft)
        targets: list[int] = []
        for i in range(len(drafts) + 1):
            known = [*tokens, *drafts[:i]]
            before = () if forget_drafts else drafts[:i]
            target = sample(target_logits(known), state, len(known), before)
            assert target is not None
            targets.append(target)
        num_accepted = accept(drafts, targets)
        num_drafted += len(drafts)
        num_accepted_total += num_accepted
        for token in [*drafts[:num_accepted], targets[num_accepted]]:
            state.append(token)
            tokens.append(token)
    return tokens[: len(PROMPT) + LENGTH], num_accepted_total / max(1, num_drafted)


CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "plain": SamplingParams(),
    "cool": SamplingParams(temperature=0.5, top_p=0.9),
    "filters": SamplingParams(top_k=8, min_p=0.05, top_p=0.95, temperature=1.3),
    "penalties": SamplingParams(
        presence_penalty=0.8, frequency_penalty=0.7, repetition_penalty=1.2, logit_bias={4: 0.5}
    ),
    "allowed": SamplingParams(allowed_token_ids=(1, 3, 4, 8, 9, 13, 20, 21, 22)),
    "min_tokens": SamplingParams(
        temperature=0.0, min_tokens=47, stop_token_ids=(2, 5), logit_bias={2: 30.0, 20: 3.0}
    ),
}


@pytest.mark.parametrize("num_drafts", [1, 3, 8])
@pytest.mark.parametrize("name", CASES)
def test_speculation_changes_no_token(name: str, num_drafts: int) -> None:
    tokens, acceptance = speculative(CASES[name], num_drafts)
    assert tokens == plain(CASES[name])
    assert acceptance > 0.1, "a test without accepted drafts shows nothing"


@pytest.mark.parametrize("name", CASES)
def test_accepting_unchecked_drafts_would_show(name: str) -> None:
    tokens, _ = speculative(CASES[name], 3, accept=lambda drafts, _: len(drafts))
    assert tokens != plain(CASES[name])


@pytest.mark.parametrize("name", ["penalties", "min_tokens"])
def test_forgetting_drafts_would_show(name: str) -> None:
    expected = plain(CASES[name])
    runs = [speculative(CASES[name], num, forget_drafts=True)[0] for num in (2, 3, 5)]
    assert any(tokens != expected for tokens in runs)


def test_noise_of_another_position_costs_acceptance_not_tokens() -> None:
    tokens, acceptance = speculative(CASES["plain"], 3, shift=1)
    _, in_step = speculative(CASES["plain"], 3)
    assert tokens == plain(CASES["plain"])
    assert acceptance < in_step / 2

"""What a request's drafting fields come to."""

from __future__ import annotations

import pytest

from engine.config import MAX_SPECULATIONS, EngineConfig
from engine.errors import InvalidRequestError
from engine.speculative.drafting import NO_DRAFTS, DraftPolicy, resolve_policy
from engine.types import DraftMethod, SpeculativeParams
from support.fake_backend import fake_config

AUTO, EARLY, NGRAM = DraftMethod.AUTO, DraftMethod.EARLY_EXIT, DraftMethod.NGRAM
CONFIG = EngineConfig(draft_exit_layer=3, num_speculations=5).resolve(fake_config(num_layers=8))


@pytest.mark.parametrize(
    ("method", "draft_exit", "count", "answering", "expected"),
    [
        # Silence: the engine's depth and number.
        (AUTO, None, None, 8, DraftPolicy(5, 3)),
        (EARLY, None, None, 8, DraftPolicy(5, 3)),
        (NGRAM, None, None, 8, DraftPolicy(5)),
        # A number is used exactly, 0 included.
        (AUTO, None, 2, 8, DraftPolicy(2, 3)),
        (AUTO, None, 0, 8, DraftPolicy(0, 3)),
        (AUTO, None, 16, 8, DraftPolicy(16, 3)),
        (NGRAM, None, 7, 8, DraftPolicy(7)),
        # A depth is used exactly.
        (AUTO, 6, None, 8, DraftPolicy(5, 6)),
        (EARLY, 1, 4, 2, DraftPolicy(4, 1)),
        # The engine's depth just below the answering one, and not below it.
        (AUTO, None, None, 4, DraftPolicy(5, 3)),
        (AUTO, None, None, 3, DraftPolicy(5)),
        (AUTO, None, None, 1, DraftPolicy(5)),
        (EARLY, None, None, 3, DraftPolicy(5, 2)),
        (EARLY, None, None, 2, DraftPolicy(5, 1)),
        (NGRAM, None, None, 1, DraftPolicy(5)),
    ],
)
def test_policies(
    method: DraftMethod,
    draft_exit: int | None,
    count: int | None,
    answering: int,
    expected: DraftPolicy,
) -> None:
    params = SpeculativeParams(method=method, exit_layer=draft_exit, num_speculations=count)
    assert resolve_policy(params, CONFIG, answering) == expected


def test_a_request_that_does_not_say_gets_the_engines_default() -> None:
    assert resolve_policy(None, CONFIG, 8) == DraftPolicy(5, 3)
    silent = EngineConfig(speculative=False).resolve(fake_config(num_layers=8))
    assert resolve_policy(None, silent, 8) == NO_DRAFTS
    # One that asks is drafted for all the same.
    automatic = DraftPolicy(MAX_SPECULATIONS, 2, is_exact=False, tries_ngrams=True)
    assert resolve_policy(SpeculativeParams(), silent, 8) == automatic


def test_disabled_means_no_drafts_whatever_else_is_said() -> None:
    params = SpeculativeParams(enabled=False, method=NGRAM, exit_layer=2, num_speculations=9)
    assert resolve_policy(params, CONFIG, 8) == NO_DRAFTS


@pytest.mark.parametrize(
    ("params", "answering", "field"),
    [
        (SpeculativeParams(method=NGRAM, exit_layer=2), 8, "speculative.exit_layer"),
        (SpeculativeParams(method=EARLY), 1, "speculative.method"),
    ],
)
def test_contradictions_are_refused_by_name(
    params: SpeculativeParams, answering: int, field: str
) -> None:
    with pytest.raises(InvalidRequestError, match=field.split(".")[1]) as raised:
        resolve_policy(params, CONFIG, answering)
    assert raised.value.param == field


@pytest.mark.parametrize(
    ("policy", "drafts", "uses_ngrams"),
    [
        (NO_DRAFTS, False, False),
        (DraftPolicy(0, 3), False, False),
        (DraftPolicy(2, 3), True, False),
        (DraftPolicy(2), True, True),
    ],
)
def test_what_a_policy_means(policy: DraftPolicy, drafts: bool, uses_ngrams: bool) -> None:
    assert (policy.drafts, policy.uses_ngrams) == (drafts, uses_ngrams)


def test_a_method_may_be_given_by_name() -> None:
    named = SpeculativeParams(method="ngram")  # pyright: ignore[reportArgumentType]
    assert resolve_policy(named, CONFIG, 8) == DraftPolicy(5)
    unknown = SpeculativeParams(method="oracle")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidRequestError, match="'oracle'") as raised:
        resolve_policy(unknown, CONFIG, 8)
    assert raised.value.param == "speculative.method"

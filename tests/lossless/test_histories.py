"""Whatever happens around a request, it gets the tokens of the oracle, and their exact logits."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest

from engine.types import FinishReason, TokenSource
from support.backend_variants import FAMILY, Precision, each_precision, needs_native
from support.coverage_record import Coverage
from support.engine_runs import EngineRun, differences
from support.fake_backend import FakeBackend
from support.history_models import Family, make_model
from support.lossless_histories import THEMES, make_history
from support.variants import VARIANTS

PAIRS = tuple(combinations(THEMES, 2))
NAMES = tuple(THEMES)


def pairs_at(*strides: int) -> tuple[tuple[str, str], ...]:
    """Every theme with those that come so many places after it in the list, a circle."""
    return tuple(
        (name, NAMES[(index + stride) % len(NAMES)])
        for stride in strides
        for index, name in enumerate(NAMES)
    )


REFERENCE_PAIRS = pairs_at(5)
"""Real arithmetic takes longer, so that not all themes meet."""
NATIVE_PAIRS = pairs_at(2, 5, 9, 11)


VARIANT_PAIRS = (
    ("draft_lengths", "small_pool"),
    ("exits", "shared_prompts"),
    ("draft_exits", "chunks"),
    ("crowd", "auto_or_off"),
    ("draft_lengths", "sampled"),
    ("ngrams", "prompt_logprobs"),
    ("aborts", "draft_vocabulary"),
)
"""What touches the layers most: drafts of all depths, rollback, preemption, chunks, hits."""


@cache
def run_history(
    family: Family, themes: tuple[str, str], variant: str = "v1"
) -> tuple[list[str], Coverage]:
    """Run a history; what was wrong with its answers, and what it saw."""
    history = make_history(family, themes, 0, variant)
    model = make_model(family, history.spec)
    backend = model.make_backend()
    run = EngineRun(model, backend, history.config, history.seed)
    coverage = Coverage()
    coverage.watch_matches(run.core.cache)
    answers = run.answer(history.submissions, coverage.see_step)
    coverage.see_answers(answers.values())
    if isinstance(backend, FakeBackend):
        coverage.see_sweeps(backend.counters.log)
    coverage.events["choice"] += len(answers)
    coverage.events["n > 1"] += any(s.params.n > 1 for s in history.submissions)
    if len(backend.draft_ids) < model.config.vocab_size:
        coverage.events["narrow drafts accepted"] += coverage.sources[TokenSource.DRAFT]
    return list(differences(run, history.submissions, answers)), coverage


@pytest.mark.parametrize("themes", PAIRS, ids="-".join)
def test_fake_backend_equals_the_oracle(themes: tuple[str, str]) -> None:
    wrong, _ = run_history("fake", themes)
    assert wrong == []


@pytest.mark.parametrize("themes", REFERENCE_PAIRS, ids="-".join)
def test_reference_backend_equals_the_oracle(themes: tuple[str, str]) -> None:
    wrong, _ = run_history("reference", themes)
    assert wrong == []


@needs_native
@pytest.mark.parametrize("themes", NATIVE_PAIRS, ids="-".join)
def test_native_backend_equals_the_oracle(themes: tuple[str, str]) -> None:
    """Whatever its threads and instruction set; the oracle's are one, and the plainest."""
    wrong, _ = run_history("cpu", themes)
    assert wrong == []


@each_precision(*FAMILY)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "v1"])
def test_every_variant_equals_the_oracle(variant: str, precision: Precision) -> None:
    for themes in VARIANT_PAIRS:
        wrong, _ = run_history(precision.backend, themes, variant)
        assert wrong == [], themes
    seen = total(precision.backend, VARIANT_PAIRS, variant)
    assert 0.2 < seen.acceptance_rate < 0.9
    assert min(seen.sources[source] for source in TokenSource) > 10
    assert seen.events["preemption"] and seen.prefix["equal"]


def total(family: Family, pairs: tuple[tuple[str, str], ...], variant: str = "v1") -> Coverage:
    coverage = Coverage()
    for themes in pairs:
        coverage += run_history(family, themes, variant)[1]
    return coverage


def test_the_histories_saw_everything() -> None:
    seen = total("fake", PAIRS)
    for drafts in range(1, 6):
        for accepted in range(drafts + 1):
            assert seen.accepted[drafts, accepted], f"never {accepted} of {drafts} drafts"
    assert max(drafts for drafts, _ in seen.accepted) == 16
    assert 0.2 < seen.acceptance_rate < 0.8
    assert seen.ngrams_accepted > 50
    assert min(seen.sources[source] for source in TokenSource) > 200
    for kind in ("eos", "token", "string"):
        assert seen.ends_inside_drafts[kind] > 3, f"{kind}: {seen.ends_inside_drafts}"
    for kind in ("equal", "deeper", "shallow"):
        assert seen.prefix[kind] > 10, f"{kind}: {seen.prefix}"
    for event in (
        "preemption",
        "n > 1",
        "narrow drafts accepted",
        "draft pass of several exits",
        "verification from several exits",
        "answers of several exits",
        FinishReason.ABORT,
        FinishReason.LENGTH,
        FinishReason.STOP,
    ):
        assert seen.events[event] > 10, f"{event}: {seen.events}"
    assert seen.events["8 running"] and seen.events["pass without a draft"], seen.events


@pytest.mark.parametrize(
    ("family", "pairs"),
    [("reference", REFERENCE_PAIRS), pytest.param("cpu", NATIVE_PAIRS, marks=needs_native)],
    ids=["reference", "cpu"],
)
def test_the_real_histories_saw_the_essentials(
    family: Family, pairs: tuple[tuple[str, str], ...]
) -> None:
    seen = total(family, pairs)
    assert 0.2 < seen.acceptance_rate < 0.8
    assert min(seen.sources[source] for source in TokenSource) > 20
    assert seen.events["preemption"] and seen.prefix["equal"] and seen.prefix["shallow"]

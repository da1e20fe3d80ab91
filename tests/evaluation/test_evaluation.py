"""A whole evaluation of small checkpoints: every backend, and what its parts make of each other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import CheckpointError, ConfigError
from engine.evaluation.card import card_section
from engine.evaluation.evaluation import QUICK_PLAN, EvaluationPlan, evaluate
from support.checkpoints import write_checkpoint
from support.served_process import write_model
from support.tokenizers import write_tokenizer
from support.variants import VARIANTS, variant_config

DOCUMENTS = [f"Once upon a time there was number {number}." for number in range(3)]
SMALL = EvaluationPlan(
    exits=(2, 4),
    batch_sizes=(1, 2),
    num_speculations=(2,),
    num_prompts=2,
    num_new_tokens=6,
    num_repeats=1,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("evaluate") / "model")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_backend_goes_through(checkpoint: Path, backend: str) -> None:
    phases: dict[str, tuple[int, int]] = {}

    def progress(phase: str, done: int, total: int) -> None:
        phases[phase] = done, total

    result = evaluate(
        checkpoint, DOCUMENTS, SMALL, name="m", backend=backend, threads=1, progress=progress
    )
    assert result.machine.backend == backend
    assert [each.exit_layer for each in result.exits] == [2, 4, 6]
    assert len(result.speeds) == 2 * (3 + 2 * 2)
    assert result.method.num_changed_tokens == 0 < result.method.num_compared_tokens
    for speed in result.speeds:
        split = speed.time.model_dump()
        # Rounds are timed from outside, so their parts come to no more than the whole.
        assert 0 < sum(split.values()) <= 1.01e3 / min(speed.samples)
        assert all(part >= 0 for part in split.values())
        assert (split["draft_layers_ms"] > 0) == (speed.num_speculations == 2) or (
            speed.num_speculations == "auto"
        )
    assert all(done == total for done, total in phases.values())
    assert list(phases) == [
        "reading weights", "turning the exit norm", "scoring documents", "measuring speeds",
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_goes_through(tmp_path: Path, variant: str, backend: str) -> None:
    config = variant_config(variant, vocab_size=320, num_layers=4, eos_token_ids=(319,))
    write_tokenizer(write_checkpoint(tmp_path, config, agreement_after=1, damping=0.1), 320)
    plan = replace(SMALL, exits=(1, 2), batch_sizes=(2,))
    result = evaluate(tmp_path, DOCUMENTS, plan, name="m", backend=backend, threads=1)
    assert result.model.variant == variant
    assert [each.exit_layer for each in result.exits] == [1, 2, 4]
    assert all(1 < each.perplexity < math.inf for each in result.exits)
    assert any((speed.acceptance_rate or 0) > 0 for speed in result.speeds)
    assert result.method.num_changed_tokens == 0 < result.method.num_compared_tokens
    assert f"variant {variant}," in card_section(result, {})


def test_random_weights_are_doubted(checkpoint: Path) -> None:
    plan = EvaluationPlan(exits=(2,), batch_sizes=(), num_prompts=1)
    result = evaluate(checkpoint, DOCUMENTS, plan, name="m", threads=1)
    assert any("of guessing evenly" in warning for warning in result.warnings)
    assert result.best_draft is None or not result.best_draft.is_measured
    assert result.speeds == [] and result.batch_sizes == []


def test_a_missing_model_and_a_missing_exit_are_named(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        evaluate(checkpoint / "none", DOCUMENTS, SMALL, name="m")
    with pytest.raises(ConfigError, match=r"exit 9 does not lie in 1\.\.6"):
        evaluate(checkpoint, DOCUMENTS, EvaluationPlan(exits=(9,)), name="m")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_sizes": (0,)}, "batch size 0"),
        ({"batch_sizes": (257,)}, "batch size 257"),
        ({"num_speculations": ()}, "at least one"),
        ({"num_speculations": (4, 17)}, "num_speculations 17"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationPlan(**fields)  # pyright: ignore[reportArgumentType]


def test_a_quick_plan_is_smaller() -> None:
    full = EvaluationPlan()
    assert (
        QUICK_PLAN.num_repeats * QUICK_PLAN.num_new_tokens < full.num_repeats * full.num_new_tokens
    )
    assert QUICK_PLAN.quick and not full.quick

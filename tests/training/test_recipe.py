"""The recipe's formulas, and the configurations that are refused."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.training.recipe import (
    TrainingConfig,
    dropout_rates,
    exit_weights,
    exponential_dropout,
    learning_rate,
    quadratic_dropout,
    step_context,
    step_dropped,
    step_exits,
)
from support.memory_checkpoint import tiny_config


def config(num_layers: int = 6, **overrides: Any) -> TrainingConfig:
    model = tiny_config(num_layers=num_layers, max_position_embeddings=64)
    fields = {"batch_tokens": 128, "short_context": 16, "max_steps": 100, **overrides}
    return TrainingConfig(model=model, **fields)


@pytest.mark.parametrize("num_layers", [4, 12, 24])
@pytest.mark.parametrize("total", [0.25, 1.0])
def test_layer_dropout_is_quadratic_and_sums_to_the_total(num_layers: int, total: float) -> None:
    rates = quadratic_dropout(num_layers, total)
    assert len(rates) == num_layers
    assert rates[0] == rates[-1] == 0.0
    assert sum(rates) == pytest.approx(total)
    for layer in range(1, num_layers - 1):
        assert rates[layer] == pytest.approx(rates[1] * layer**2)


def test_without_layer_dropout_nothing_is_dropped() -> None:
    assert quadratic_dropout(12, 0.0) == (0.0,) * 12
    assert quadratic_dropout(2, 1.0) == (0.0, 0.0)


def test_exit_weights_are_proportional_to_depth() -> None:
    weights = exit_weights((2, 4, 6))
    assert weights == pytest.approx({2: 1 / 6, 4: 2 / 6, 6: 3 / 6})


def test_every_exit_but_the_last_is_trained_by_default() -> None:
    assert config().exits == (1, 2, 3, 4, 5)
    assert config(trained_exits=(4, 2, 4)).exits == (2, 4)


def test_all_exits_or_one_after_the_other() -> None:
    exits = (2, 3, 5)
    together = config(trained_exits=exits, exit_schedule="all")
    assert all(step_exits(together, step, 0.0) == exit_weights(exits) for step in range(4))
    rotating = config(trained_exits=exits)
    assert [step_exits(rotating, step, 0.0) for step in range(4)] == [
        {2: 1.0}, {3: 1.0}, {5: 1.0}, {2: 1.0},
    ]  # fmt: skip


def test_rotation_enables_each_exit_equally_often() -> None:
    enabled = Counter(
        exit_layer for step in range(300) for exit_layer in step_exits(config(), step, 0.0)
    )
    assert enabled == {exit_layer: 60 for exit_layer in (1, 2, 3, 4, 5)}


def test_the_gradual_curriculum_begins_with_the_deepest_exit() -> None:
    gradual = config(trained_exits=(2, 3, 5), exit_schedule="gradual")
    assert step_exits(gradual, 0, 0.0) == {5: 1.0}
    assert step_exits(gradual, 7, 0.16) == {5: 1.0}
    assert step_exits(gradual, 7, 0.17) == exit_weights((3, 5))
    assert step_exits(gradual, 7, 0.34) == exit_weights((2, 3, 5))
    assert step_exits(gradual, 7, 1.0) == exit_weights((2, 3, 5))


@pytest.mark.parametrize("schedule", ["rotating", "gradual", "all"])
def test_without_exit_loss_no_exit_is_computed(schedule: str) -> None:
    recipe = config(exit_loss_weight=0.0, exit_schedule=schedule)
    assert all(step_exits(recipe, step, 0.7) == {} for step in range(6))


def test_dropped_layers_depend_on_seed_and_step_alone() -> None:
    drops = [step_dropped(config(), step, 0.0) for step in range(200)]
    again = config(max_steps=7, learning_rate=0.1)
    assert [step_dropped(again, step, 0.0) for step in reversed(range(200))] == drops[::-1]
    assert [step_dropped(config(seed=1), step, 0.0) for step in range(200)] != drops


def test_layers_are_dropped_as_often_as_their_rates_say() -> None:
    num_steps = 4000
    counts = Counter(
        layer for step in range(num_steps) for layer in step_dropped(config(), step, 0.0)
    )
    for layer, rate in enumerate(quadratic_dropout(6, 1.0)):
        # Four standard deviations; the seed is fixed, so this passes or fails for good.
        tolerance = 4 * (rate * (1 - rate) / num_steps) ** 0.5
        assert counts[layer] / num_steps == pytest.approx(rate, abs=tolerance)


def test_layerskips_layer_dropout_rises_exponentially_with_depth() -> None:
    rates = exponential_dropout(5, 0.2)
    expected = [0.2 * (math.exp(layer * math.log(2) / 4) - 1) for layer in range(5)]
    assert rates == pytest.approx(expected)
    assert (rates[0], rates[-1]) == (0.0, pytest.approx(0.2))
    assert exponential_dropout(5, 0.2, 0.25) == pytest.approx([rate / 4 for rate in expected])


def test_layer_dropout_grows_over_a_run_from_scratch_alone() -> None:
    fields = {"layer_dropout": "exponential", "layer_dropout_max": 0.2}
    growing = config(**fields, layer_dropout_grows=True)
    at_half = math.exp(0.5 * math.log(2)) - 1
    last = [dropout_rates(growing, progress)[-1] for progress in (0.0, 0.5, 1.0, 1.2)]
    assert last == pytest.approx([0.0, 0.2 * at_half, 0.2, 0.2])
    constant = config(**fields)
    assert dropout_rates(constant, 0.0) == dropout_rates(constant, 0.9)
    assert dropout_rates(constant, 0.0)[-1] == pytest.approx(0.2)


def test_the_kind_of_layer_dropout_is_a_choice() -> None:
    assert dropout_rates(config(), 0.5) == quadratic_dropout(6, 1.0)
    assert dropout_rates(config(layer_dropout="none"), 0.5) == (0.0,) * 6
    assert not any(step_dropped(config(layer_dropout="none"), step, 0.5) for step in range(100))


def test_layers_are_dropped_independently() -> None:
    drops = [step_dropped(config(), step, 0.0) for step in range(4000)]
    rates = quadratic_dropout(6, 1.0)
    both = sum({3, 4} <= dropped for dropped in drops) / len(drops)
    assert both == pytest.approx(rates[3] * rates[4], abs=0.02)


def test_learning_rate_warms_up_linearly_and_falls_as_a_cosine() -> None:
    recipe = config(learning_rate=2.0, warmup_steps=10, final_learning_rate_share=0.1)
    warmup = [learning_rate(recipe, step, 0.0) for step in range(12)]
    assert warmup == pytest.approx([0.2 * (step + 1) for step in range(10)] + [2.0, 2.0])
    falling = [learning_rate(recipe, 50, progress) for progress in (0.0, 1 / 3, 0.5, 1.0)]
    assert falling == pytest.approx([2.0, 2.0 * (0.1 + 0.9 * 0.75), 1.1, 0.2])
    # A last step that ends late in a run measured in minutes.
    assert learning_rate(recipe, 50, 1.3) == pytest.approx(0.2)


def test_learning_rate_stays_and_then_falls_linearly() -> None:
    recipe = config(
        learning_rate=2.0,
        learning_rate_schedule="wsd",
        decay_share=0.4,
        warmup_steps=4,
        final_learning_rate_share=0.1,
    )
    assert [learning_rate(recipe, step, 0.0) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    falling = [learning_rate(recipe, 50, progress) for progress in (0.3, 0.6, 0.8, 0.9, 1.0, 1.1)]
    assert falling == pytest.approx([2.0, 2.0, 2.0 * 0.55, 2.0 * 0.325, 0.2, 0.2])
    never = config(learning_rate=2.0, learning_rate_schedule="wsd", decay_share=0.0)
    assert learning_rate(never, 500, 0.99) == 2.0


def test_learning_rate_without_warmup_starts_at_its_peak() -> None:
    assert learning_rate(config(warmup_steps=0, learning_rate=0.5), 0, 0.0) == 0.5


def test_context_grows_after_the_short_part() -> None:
    recipe = config(short_fraction=0.8)
    assert [step_context(recipe, p) for p in (0.0, 0.79, 0.8, 1.0)] == [16, 16, 64, 64]
    assert step_context(config(short_context=1000), 0.0) == 64
    assert step_context(config(short_fraction=0.0), 0.0) == 64


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_steps": None}, "one of max_steps, max_tokens and max_minutes"),
        ({"max_minutes": 3.0}, "one of max_steps, max_tokens and max_minutes"),
        ({"max_steps": 0}, "max_steps must be positive"),
        ({"max_steps": None, "max_minutes": 0.0}, "max_minutes must be positive"),
        ({"trained_exits": (0, 3)}, r"trained_exits must lie in 1\.\.6"),
        ({"trained_exits": (7,)}, r"trained_exits must lie in 1\.\.6"),
        ({"num_layers": 1, "layer_dropout_sum": 0.0}, "no exit"),
        ({"batch_tokens": 0}, "batch_tokens must be positive"),
        ({"batch_tokens": 63}, "batch_tokens must be at least the context of 64"),
        ({"short_context": 0}, "short_context must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"clip_norm": -1.0}, "clip_norm must be positive"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"exit_loss_weight": -0.1}, "exit_loss_weight must not be negative"),
        ({"skip_tokens": -1}, "skip_tokens must not be negative"),
        ({"layer_dropout_sum": -0.1}, "layer_dropout_sum must not be negative"),
        ({"short_fraction": 1.1}, "short_fraction must lie in 0..1"),
        ({"final_learning_rate_share": -0.1}, "final_learning_rate_share must lie in 0..1"),
        ({"exit_schedule": "some"}, "exit_schedule must be one of all, rotating, gradual"),
        ({"layer_dropout": "some"}, "layer_dropout must be one of card, exponential, none"),
        ({"learning_rate_schedule": "x"}, "learning_rate_schedule must be one of cosine, wsd"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon"),
        ({"precision": "int8"}, "precision must be one of float32, bfloat16"),
        ({"layer_dropout_max": 1.0}, "layer_dropout_max must lie in"),
        ({"distill_weight": 1.5}, "distill_weight must lie in 0..1"),
        ({"distill_temperature": 0.0}, "distill_temperature must be positive"),
        ({"max_steps": None, "max_tokens": 0}, "max_tokens must be positive"),
        ({"decay_share": -0.1}, "decay_share must lie in 0..1"),
        # 3 layers: only the middle one may be dropped, and it always would be.
        ({"num_layers": 3}, "layer_dropout_sum 1.0 is too much for 3 layers"),
        ({"num_layers": 2}, "layer_dropout_sum 1.0 is too much for 2 layers"),
    ],
)
def test_refuses(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**overrides)


def test_refuses_a_model_with_one_matrix_for_embedding_and_head() -> None:
    model = tiny_config(tie_word_embeddings=True)
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        TrainingConfig(model=model, max_steps=1)


def test_shallow_models_train_with_less_quadratic_dropout() -> None:
    assert config(num_layers=3, layer_dropout_sum=0.5).exits == (1, 2)
    assert config(num_layers=2, layer_dropout_sum=0.0).exits == (1,)

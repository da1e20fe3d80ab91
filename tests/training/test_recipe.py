"""The recipe's formulas, and the configurations that are refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.training.recipe import (
    TrainingConfig,
    exit_weights,
    layer_dropout,
    learning_rate,
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
    rates = layer_dropout(num_layers, total)
    assert len(rates) == num_layers
    assert rates[0] == rates[-1] == 0.0
    assert sum(rates) == pytest.approx(total)
    for layer in range(1, num_layers - 1):
        assert rates[layer] == pytest.approx(rates[1] * layer**2)


def test_without_layer_dropout_nothing_is_dropped() -> None:
    assert layer_dropout(12, 0.0) == (0.0,) * 12
    assert layer_dropout(2, 1.0) == (0.0, 0.0)


def test_exit_weights_are_proportional_to_depth() -> None:
    weights = exit_weights((2, 4, 6))
    assert weights == pytest.approx({2: 1 / 6, 4: 2 / 6, 6: 3 / 6})


def test_every_exit_but_the_last_is_trained_by_default() -> None:
    assert config().exits == (1, 2, 3, 4, 5)
    assert config(trained_exits=(4, 2, 4)).exits == (2, 4)


def test_all_exits_or_one_after_the_other() -> None:
    exits = (2, 3, 5)
    together = config(trained_exits=exits, exit_schedule="all")
    assert all(step_exits(together, step) == exit_weights(exits) for step in range(4))
    rotating = config(trained_exits=exits)
    assert [step_exits(rotating, step) for step in range(4)] == [
        {2: 1.0}, {3: 1.0}, {5: 1.0}, {2: 1.0},
    ]  # fmt: skip


def test_dropped_layers_depend_on_seed_and_step_alone() -> None:
    drops = [step_dropped(config(), step) for step in range(200)]
    again = config(max_steps=7, learning_rate=0.1)
    assert [step_dropped(again, step) for step in reversed(range(200))] == drops[::-1]
    assert [step_dropped(config(seed=1), step) for step in range(200)] != drops


def test_layers_are_dropped_as_often_as_their_rates_say() -> None:
    num_steps = 4000
    counts = Counter(layer for step in range(num_steps) for layer in step_dropped(config(), step))
    for layer, rate in enumerate(layer_dropout(6, 1.0)):
        # Four standard deviations; the seed is fixed, so this passes or fails for good.
        tolerance = 4 * (rate * (1 - rate) / num_steps) ** 0.5
        assert counts[layer] / num_steps == pytest.approx(rate, abs=tolerance)


def test_layers_are_dropped_independently() -> None:
    drops = [step_dropped(config(), step) for step in range(4000)]
    rates = layer_dropout(6, 1.0)
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
        ({"max_steps": None}, "max_steps or max_minutes"),
        ({"max_minutes": 3.0}, "max_steps or max_minutes"),
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
        ({"layer_dropout_sum": -0.1}, "layer_dropout_sum must not be negative"),
        ({"short_fraction": 1.1}, "short_fraction must lie in 0..1"),
        ({"final_learning_rate_share": -0.1}, "final_learning_rate_share must lie in 0..1"),
        ({"exit_schedule": "some"}, "exit_schedule must be"),
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


def test_shallow_models_train_with_less_layer_dropout() -> None:
    assert config(num_layers=3, layer_dropout_sum=0.5).exits == (1, 2)
    assert config(num_layers=2, layer_dropout_sum=0.0).exits == (1,)

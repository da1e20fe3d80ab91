"""Exits for a dense model that was trained without them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint.loader import load_checkpoint
from engine.documents import END_OF_TEXT
from engine.training.data import DataSource, prepare_data
from engine.training.initial import initial_model
from engine.training.recipe import TrainingConfig
from engine.training.trainer import Validation, train, validate
from support.memory_checkpoint import tiny_config

VOCAB_SIZE = 300
MODEL = tiny_config(
    vocab_size=VOCAB_SIZE,
    num_layers=4,
    max_position_embeddings=64,
    eos_token_ids=(VOCAB_SIZE - 1,),
    weights="dense",
)


def recipe(num_steps: int, exit_loss_weight: float, distill_weight: float = 0.0) -> TrainingConfig:
    return TrainingConfig(
        MODEL,
        batch_tokens=256,
        learning_rate=5e-3,
        warmup_steps=5,
        exit_loss_weight=exit_loss_weight,
        distill_weight=distill_weight,
        layer_dropout="none",
        max_steps=num_steps,
    )


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "stories.txt"
    documents = [
        f"{name} had a {animal}. The {animal} was {number} years old, and {name} was happy."
        for name, animal, number in itertools.product(
            ("Ann", "Ben", "Cleo", "Dan", "Eve"), ("cat", "dog", "bird", "frog"), range(10)
        )
    ]
    path.write_text(f"\n{END_OF_TEXT}\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def without_exits(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Path:
    """A finished run of a dense model whose exits had no loss."""
    path = tmp_path_factory.mktemp("dense")
    prepare_data(path, [DataSource(stories)], VOCAB_SIZE, num_heldout=20, seed=0)
    train(recipe(50, exit_loss_weight=0.0), path)
    return path


def score(model: Path, run: Path) -> Validation:
    with load_checkpoint(model) as checkpoint:
        decoder = initial_model(recipe(1, 0.0), checkpoint)
    return validate(decoder, np.load(run / "heldout.npy"))


def test_training_on_gives_a_dense_model_exits(
    tmp_path: Path, stories: Path, without_exits: Path
) -> None:
    start = without_exits / "model"
    prepare_data(
        tmp_path,
        [DataSource(stories)],
        VOCAB_SIZE,
        num_heldout=20,
        seed=0,
        tokenizer_file=start / "tokenizer.json",
    )
    with load_checkpoint(start) as checkpoint:
        train(recipe(25, 0.5, distill_weight=0.5), tmp_path, start=checkpoint)
    before, after = score(start, tmp_path), score(tmp_path / "model", tmp_path)
    for exit_layer in (1, 2, 3):
        assert after.losses[exit_layer] < before.losses[exit_layer] - 0.2
    assert after.agreements[1] > before.agreements[1] + 0.1
    assert sum(after.agreements.values()) > sum(before.agreements.values()) + 0.15
    assert after.losses[4] < before.losses[4] + 0.1, "full depth is not given up for it"


def test_the_first_step_has_the_checkpoints_loss(
    tmp_path: Path, stories: Path, without_exits: Path
) -> None:
    start = without_exits / "model"
    tokenizer_file = start / "tokenizer.json"
    prepare_data(tmp_path, [DataSource(stories)], VOCAB_SIZE, 20, 0, tokenizer_file)
    with load_checkpoint(start) as checkpoint:
        losses: list[float] = []
        train(
            recipe(1, 0.5),
            tmp_path,
            start=checkpoint,
            report=lambda progress, entry: losses.append(entry["loss"]),
        )
    assert losses[0] < 3.0, "a new model's is ln 300 = 5.7"

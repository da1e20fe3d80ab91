"""Whole runs of a tiny model: they learn, resume to the bit, and export what was trained."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.backends.reference import ReferenceBackend
from engine.build import load_model
from engine.checkpoint.loader import load_checkpoint
from engine.config import EngineConfig, ModelConfig
from engine.documents import END_OF_TEXT, read_documents
from engine.errors import ConfigError
from engine.training.data import DataSource, prepare_data, window_batch
from engine.training.modules import TrainableDecoder
from engine.training.recipe import TrainingConfig
from engine.training.trainer import export_checkpoint, train, validate
from support.float_oracle import assert_same_model
from support.memory_checkpoint import tiny_config
from support.sequences import sequence_logits

VOCAB_SIZE = 300
NUM_STEPS = 30
MODEL = tiny_config(
    vocab_size=VOCAB_SIZE,
    num_layers=3,
    max_position_embeddings=64,
    eos_token_ids=(VOCAB_SIZE - 1,),
)
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve")
ANIMALS = ("cat", "dog", "bird", "frog")


def config(**overrides: Any) -> TrainingConfig:
    fields: dict[str, Any] = {
        "model": MODEL,
        "batch_tokens": 256,
        "short_context": 32,
        "short_fraction": 0.6,
        "learning_rate": 5e-3,
        "warmup_steps": 5,
        "layer_dropout_sum": 0.5,
        "max_steps": NUM_STEPS,
    }
    return TrainingConfig(**{**fields, **overrides})


def ticking(seconds: float = 1.0) -> Callable[[], float]:
    """A clock that goes on by so much whenever it is read."""
    return partial(next, itertools.count(0.0, seconds))


def interrupt_after(num_steps: int) -> Callable[[float, dict[str, Any]], None]:
    def report(progress: float, entry: dict[str, Any]) -> None:
        if entry["step"] == num_steps:
            raise KeyboardInterrupt

    return report


def read_log(out: Path) -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def saved_tensors(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "state.pt", weights_only=True)["model"]


def saved_model(out: Path, model: ModelConfig = MODEL) -> TrainableDecoder:
    decoder = TrainableDecoder(model)
    decoder.load_state_dict(saved_tensors(out))
    return decoder


def steps_of(out: Path) -> list[int]:
    return [entry["step"] for entry in read_log(out)]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "stories.txt"
    documents = [
        f"{name} had a {animal}. The {animal} was {number} years old, and {name} was happy."
        for name, animal, number in itertools.product(NAMES, ANIMALS, range(10))
    ]
    path.write_text(f"\n{END_OF_TEXT}\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture
def out(tmp_path: Path, stories: Path) -> Path:
    """A run's folder with its data, not begun."""
    path = tmp_path / "run"
    prepare_data(path, [DataSource(stories)], VOCAB_SIZE, num_heldout=20, seed=0)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Path:
    """An uninterrupted run, for all tests to read."""
    path = tmp_path_factory.mktemp("finished")
    prepare_data(path, [DataSource(stories)], VOCAB_SIZE, num_heldout=20, seed=0)
    train(config(), path, clock=ticking())
    return path


def test_loss_falls_at_every_exit(finished: Path) -> None:
    log = read_log(finished)
    first, last = log[:5], log[-5:]
    assert np.mean([e["loss"] for e in first]) > 5.0, "about ln 300 to begin with"
    assert np.mean([e["loss"] for e in last]) < np.mean([e["loss"] for e in first]) - 1.5
    assert np.mean([e["exit_loss"] for e in last]) < np.mean([e["exit_loss"] for e in first]) - 1.5
    untrained = validate(TrainableDecoder(MODEL), np.load(finished / "heldout.npy"))
    for exit_layer, loss in untrained.losses.items():
        assert log[-1]["heldout"][str(exit_layer)] < loss - 1.5


def test_log_has_a_complete_line_for_every_step(finished: Path) -> None:
    log = read_log(finished)
    assert [entry["step"] for entry in log] == list(range(1, NUM_STEPS + 1))
    assert [entry["num_tokens"] for entry in log] == [256 * n for n in range(1, NUM_STEPS + 1)]
    assert [entry["elapsed_s"] for entry in log] == list(range(1, NUM_STEPS + 1))
    assert [entry["context"] for entry in log] == [32] * 18 + [64] * 12
    assert [list(entry["exit_losses"]) for entry in log[:3]] == [["1"], ["2"], ["1"]]
    assert all(entry["tokens_per_s"] == 256.0 for entry in log)
    assert ["heldout" in entry for entry in log] == [False] * (NUM_STEPS - 1) + [True]
    assert list(log[-1]["heldout"]) == list(log[-1]["agreement"]) == ["1", "2", "3"]
    assert log[-1]["agreement"]["3"] == 1.0
    for entry in log:
        assert entry["exit_loss"] == pytest.approx(sum(entry["exit_losses"].values()), abs=1e-3)
        assert 0 < entry["learning_rate"] <= 5e-3 and entry["grad_norm"] > 0
        assert entry["num_dropped"] in (0, 1)


def test_all_exits_can_be_trained_at_once(out: Path) -> None:
    train(config(max_steps=2, exit_schedule="all"), out, clock=ticking())
    for entry in read_log(out):
        losses = entry["exit_losses"]
        assert entry["exit_loss"] == pytest.approx(losses["1"] / 3 + losses["2"] * 2 / 3, abs=1e-3)


@pytest.mark.parametrize("num_steps", [1, 12, 25])
def test_an_interrupted_run_ends_with_the_same_bits(
    out: Path, finished: Path, num_steps: int
) -> None:
    # The clock is read three times a step, so the state is saved about every five steps: some
    # steps are lost by the interruption and trained again.
    with pytest.raises(KeyboardInterrupt):
        train(config(), out, clock=ticking(10.0), report=interrupt_after(num_steps))
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 2')
    torch.manual_seed(99)
    train(config(), out, clock=ticking())
    expected, actual = saved_tensors(finished), saved_tensors(out)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert steps_of(out) == list(range(1, NUM_STEPS + 1))
    losses = [[entry["loss"] for entry in read_log(path)] for path in (out, finished)]
    assert losses[0] == losses[1]


def test_interruptions_lose_little(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config(), out, clock=ticking(10.0), report=interrupt_after(18))
    assert torch.load(out / "state.pt", weights_only=True)["step"] >= 12


def test_a_run_can_be_made_longer(out: Path) -> None:
    train(config(max_steps=3), out, clock=ticking())
    train(config(max_steps=5, compile=False), out, clock=ticking())
    assert steps_of(out) == [1, 2, 3, 4, 5]
    before = saved_tensors(out)
    train(config(max_steps=4), out, clock=ticking())
    assert steps_of(out) == [1, 2, 3, 4, 5], "it is past its end already"
    assert all(torch.equal(tensor, before[name]) for name, tensor in saved_tensors(out).items())


def test_a_run_in_minutes_counts_the_time_of_its_steps(out: Path) -> None:
    recipe = config(max_steps=None, max_minutes=0.5)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out, clock=ticking(4.0), report=interrupt_after(2))
    assert steps_of(out) == [1, 2]
    # Nothing was saved within those few seconds, so the run starts over: 30 s are 8 steps of 4 s.
    train(recipe, out, clock=ticking(4.0))
    log = read_log(out)
    assert [entry["elapsed_s"] for entry in log] == [4.0 * n for n in range(1, 9)]
    assert log[-1]["learning_rate"] < log[-2]["learning_rate"]
    # Twice the time: the other half is spent from where it stood.
    train(config(max_steps=None, max_minutes=1.0), out, clock=ticking(4.0))
    assert [entry["elapsed_s"] for entry in read_log(out)] == [4.0 * n for n in range(1, 16)]


def test_a_run_can_be_measured_in_tokens(out: Path, finished: Path) -> None:
    train(config(max_steps=None, max_tokens=256 * NUM_STEPS), out, clock=ticking())
    expected, actual = saved_tensors(finished), saved_tensors(out)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_run_can_begin_within_the_data(tmp_path: Path, out: Path) -> None:
    rolled = tmp_path / "rolled"
    shutil.copytree(out, rolled)
    np.save(rolled / "stream.npy", np.roll(np.load(out / "stream.npy"), -1000))
    train(config(max_steps=3, skip_tokens=1000), out, clock=ticking())
    train(config(max_steps=3), rolled, clock=ticking())
    losses = [[entry["loss"] for entry in read_log(path)] for path in (out, rolled)]
    assert losses[0] == losses[1]


def test_a_constant_rate_can_be_let_fall_at_any_time(out: Path) -> None:
    recipe = {"learning_rate_schedule": "wsd", "max_steps": None, "short_fraction": 1.0}
    endless = config(**recipe, max_tokens=256 * 1000)
    with pytest.raises(KeyboardInterrupt):
        train(endless, out, clock=ticking(130.0), report=interrupt_after(11))
    # Ten steps were saved; they are to be two thirds of the run.
    train(config(**recipe, max_tokens=256 * 15, decay_share=1 / 3), out, clock=ticking())
    rates = [entry["learning_rate"] for entry in read_log(out)]
    assert rates[:5] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 5e-3])
    falling = [5e-3 * (0.05 + 0.95 * left / 5) for left in (5, 4, 3, 2, 1)]
    assert rates[5:] == pytest.approx([5e-3] * 5 + falling)


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "muon"},
        {"precision": "bfloat16"},
        {"exit_schedule": "gradual", "layer_dropout": "exponential", "layer_dropout_grows": True},
        {"distill_weight": 0.5, "distill_temperature": 2.0},
        {"exit_loss_weight": 0.0, "layer_dropout": "none"},
    ],
    ids=lambda recipe: next(iter(recipe)),
)
def test_every_recipe_learns(out: Path, recipe: dict[str, Any]) -> None:
    train(config(**recipe), out, clock=ticking())
    log = read_log(out)
    assert np.mean([e["loss"] for e in log[-5:]]) < np.mean([e["loss"] for e in log[:5]]) - 1.5
    assert ("1" in log[-1]["exit_losses"]) == (recipe.get("exit_schedule") == "gradual")


@pytest.mark.parametrize(
    "numerics",
    [
        {"activation_bits": 4, "hadamard": "before"},
        {"hadamard": "before"},
        {"hadamard": "after"},
        {"weights": "dense"},
    ],
    ids=["v2", "v3", "v3-quantise-first", "dense"],
)
def test_the_other_variants_learn_and_are_served(out: Path, numerics: dict[str, Any]) -> None:
    model = replace(MODEL, **numerics)
    train(config(model=model), out, clock=ticking())
    log = read_log(out)
    assert np.mean([e["loss"] for e in log[-5:]]) < np.mean([e["loss"] for e in log[:5]]) - 1.5
    assert_served_as_trained(out, model)


def test_reports_progress(out: Path) -> None:
    reports: list[tuple[float, int]] = []
    train(
        config(max_steps=4),
        out,
        clock=ticking(),
        report=lambda progress, entry: reports.append((progress, entry["step"])),
    )
    assert reports == [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.1}, r"learning_rate was 0\.005, is 0\.1"),
        ({"seed": 4}, "seed was 0, is 4"),
        ({"trained_exits": (1,)}, r"trained_exits was \(\), is \(1,\)"),
        (
            {"model": tiny_config(vocab_size=VOCAB_SIZE, num_layers=4, hidden_size=24)},
            r"model\.hidden_size was 32, is 24.*model\.num_layers was 3, is 4",
        ),
    ],
)
def test_refuses_to_resume_another_run(
    out: Path, finished: Path, changed: dict[str, Any], message: str
) -> None:
    (out / "state.pt").write_bytes((finished / "state.pt").read_bytes())
    with pytest.raises(ConfigError, match=message):
        train(config(**{"batch_tokens": 256, **changed}), out, clock=ticking())
    assert (out / "state.pt").read_bytes() == (finished / "state.pt").read_bytes()


def test_refuses_data_that_do_not_fit(out: Path) -> None:
    with pytest.raises(ConfigError, match="300 tokens, the model 299"):
        train(config(model=tiny_config(vocab_size=299)), out)
    with pytest.raises(ConfigError, match=r"too few for steps of 1000000"):
        train(config(batch_tokens=1_000_000), out)


def test_stops_when_the_gradients_are_not_finite(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainableDecoder.head

    def broken(self: TrainableDecoder, *args: Any) -> torch.Tensor:
        return original(self, *args) * float("nan")

    monkeypatch.setattr(TrainableDecoder, "head", broken)
    with pytest.raises(ConfigError, match="step 1 are not finite"):
        train(config(), out, clock=ticking())
    assert not (out / "state.pt").exists()


def test_leaves_the_generator_of_the_caller_alone(out: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(config(max_steps=1), out, clock=ticking())
    assert torch.equal(torch.rand(3), expected)


def test_validation_is_the_mean_loss_of_the_first_windows(finished: Path) -> None:
    model, heldout = saved_model(finished), np.load(finished / "heldout.npy")
    assert len(heldout) > 3 * 64
    windows = window_batch(heldout, 0, min(16, (len(heldout) - 1) // 64), 64)
    losses = []
    for window in windows:
        tokens = torch.from_numpy(window)
        with torch.no_grad():
            hidden_ND = model(tokens[None, :-1], {2})[2]
            logprobs = model.logits(hidden_ND, 2).log_softmax(dim=-1)
        losses += [-logprobs[t, token].item() for t, token in enumerate(tokens[1:])]
    assert validate(model, heldout).losses[2] == pytest.approx(np.mean(losses), abs=2e-3)


def test_agreement_counts_the_choices_of_full_depth(finished: Path) -> None:
    model, heldout = saved_model(finished), np.load(finished / "heldout.npy")
    num_windows = min(16, (len(heldout) - 1) // 64)
    tokens_BT = torch.from_numpy(window_batch(heldout, 0, num_windows, 64))[:, :-1]
    with torch.no_grad():
        outputs = model(tokens_BT, {1, 3})
        choices = [model.logits(outputs[depth], depth).argmax(dim=-1) for depth in (1, 3)]
    expected = (choices[0] == choices[1]).double().mean().item()
    assert 0.0 < expected < 1.0
    assert validate(model, heldout).agreements[1] == pytest.approx(expected, abs=2e-3)


def test_validation_makes_do_with_little_text(finished: Path) -> None:
    model, heldout = saved_model(finished), np.load(finished / "heldout.npy")
    short = validate(model, heldout[:9])
    with torch.no_grad():
        outputs = model(torch.from_numpy(heldout[None, :8].astype(np.int64)), {3})
        targets_N = torch.from_numpy(heldout[1:9].astype(np.int64))
        expected = F.cross_entropy(model.logits(outputs[3], 3), targets_N).item()
    assert short.losses[3] == pytest.approx(expected, abs=1e-4)
    assert validate(model, heldout[:1]) == validate(model, heldout[:0]) == ({}, {})


def test_the_served_model_is_the_trained_one(finished: Path) -> None:
    assert_served_as_trained(finished, MODEL)


def assert_served_as_trained(run: Path, model: ModelConfig) -> None:
    """What the run exported computes what it trained, at every exit."""
    trained = saved_model(run, model)

    def trained_logits(tokens: list[int], depth: int) -> np.ndarray:
        with torch.no_grad():
            hidden_ND = trained(torch.tensor([tokens]), (depth,))[depth]
            return trained.logits(hidden_ND, depth).numpy()

    with load_checkpoint(run / "model") as checkpoint:
        assert checkpoint.config == model
        backend = ReferenceBackend(checkpoint, draft_vocab_size=8)
        for depth in range(1, model.num_layers + 1):
            assert_same_model(
                partial(sequence_logits, backend, depth=depth),
                partial(trained_logits, depth=depth),
                VOCAB_SIZE,
            )


def test_the_export_is_a_complete_model(finished: Path) -> None:
    loaded = load_model(finished / "model", EngineConfig(), "reference")
    assert loaded.config.eos_token_ids == (VOCAB_SIZE - 1,)
    assert loaded.tokenizer.eos_token_id == VOCAB_SIZE - 1
    ids = [
        token
        for document in read_documents(finished / "heldout.txt")
        for token in [*loaded.tokenizer.encode(document), VOCAB_SIZE - 1]
    ]
    assert ids == np.load(finished / "heldout.npy").tolist()


def test_an_export_holds_latent_weights_and_says_so(tmp_path: Path, finished: Path) -> None:
    model = TrainableDecoder(tiny_config(vocab_size=VOCAB_SIZE, weights="ternary"))
    export_checkpoint(model, finished / "tokenizer.json", tmp_path / "model")
    with load_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.config.weights == "latent"
        checkpoint.linear(0, "q_proj")

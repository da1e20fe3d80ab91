"""A tiny synthetic model, from nothing to the acceptance that the engine has with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint.loader import PackedCheckpoint, load_checkpoint
from engine.checkpoint.names import LINEARS, linear_name
from engine.config import EngineConfig
from engine.errors import CheckpointError, ConfigError
from engine.evaluation.acceptance import DraftTally
from engine.evaluation.synthetic.checkpoint import (
    Agreement,
    SyntheticModel,
    distinct_share,
    write_synthetic_checkpoint,
)
from engine.evaluation.synthetic.vocabulary import frequent_ids
from engine.evaluation.synthetic.weights import linear_scales
from engine.llm import LLM
from engine.types import DraftMethod, SamplingParams, SpeculativeParams

DRAFT_EXIT = 3
FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> SyntheticModel:
    """A model of which 70 % of the drafts are to be accepted."""
    out = tmp_path_factory.mktemp("synthetic") / "model"
    target = Agreement(0.7, 0.02)
    return write_synthetic_checkpoint(
        out, "tiny", draft_exit=DRAFT_EXIT, seed=1, target=target, threads=1
    )


def test_the_calibration_reached_its_target(calibrated: SyntheticModel) -> None:
    tally = calibrated.tally
    assert tally is not None and tally.acceptance_rate is not None
    assert abs(tally.acceptance_rate - 0.7) <= 0.02
    assert tally.num_generated_tokens >= 2000 and len(tally.completions) == 20


def test_other_prompts_and_longer_drafts_are_accepted_as_often(calibrated: SyntheticModel) -> None:
    rng = np.random.default_rng(99)
    prompts = rng.integers(256, 2000, (20, 12)).tolist()
    params = SamplingParams(
        max_tokens=150,
        temperature=0.0,
        speculative=SpeculativeParams(
            method=DraftMethod.EARLY_EXIT, exit_layer=DRAFT_EXIT, num_speculations=3
        ),
    )
    with LLM(calibrated.path, EngineConfig(kv_cache_tokens=8192), threads=1) as llm:
        choices = [generation.choices[0] for generation in llm.generate(prompts, params)]
    drafted = [choice.metrics.speculation for choice in choices if choice.metrics]
    tallies = [tally for tally in drafted if tally is not None]
    assert [len(choice.tokens) for choice in choices] == [150] * 20, "no early end"
    accepted = np.sum([tally.accepted_per_position for tally in tallies], axis=0)
    reached = [sum(tally.num_drafts for tally in tallies), *accepted[:-1]]
    # About 1,200, 840 and 590 drafts: standard errors up to 0.02.
    assert accepted / reached == pytest.approx([0.7] * 3, abs=0.08)


def test_greedy_text_is_varied_words(calibrated: SyntheticModel) -> None:
    assert calibrated.tally is not None
    completions = calibrated.tally.completions
    assert distinct_share(completions) > 0.95
    frequent = frequent_ids(calibrated.config.vocab_size)
    assert {token for tokens in completions for token in tokens} <= set(frequent)


def test_the_directory_is_a_packed_checkpoint(calibrated: SyntheticModel) -> None:
    assert set(contents(calibrated.path)) == FILES
    scales = linear_scales(calibrated.config, DRAFT_EXIT, calibrated.residual_scale)
    with load_checkpoint(calibrated.path) as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint)
        assert checkpoint.config.vocab_size == 2048
        for layer in range(checkpoint.config.num_layers):
            for linear in LINEARS:
                stored = checkpoint.packed_linear(layer, linear).scale
                assert stored == np.float32(scales[linear_name(layer, linear)])


def test_the_directory_says_what_it_is(calibrated: SyntheticModel) -> None:
    raw = json.loads((calibrated.path / "config.json").read_text("utf-8"))
    assert raw["synthetic"] is True and raw["draft_exit_layer"] == DRAFT_EXIT
    card = (calibrated.path / "README.md").read_text("utf-8")
    assert calibrated.tally is not None and "Synthetic" in card
    assert f"agreement: {calibrated.tally.acceptance_rate:.4f}" in card
    assert f"{calibrated.residual_scale!r}" in card and "seed: 1" in card


def test_a_given_scale_is_what_calibration_would_have_written(
    calibrated: SyntheticModel, tmp_path: Path
) -> None:
    model = write_synthetic_checkpoint(
        tmp_path / "m",
        "tiny",
        draft_exit=DRAFT_EXIT,
        seed=1,
        target=calibrated.residual_scale,
    )
    assert model.tally is None
    written, expected = contents(tmp_path / "m"), contents(calibrated.path)
    assert b"agreement: not measured" in written.pop("README.md")
    assert written.items() <= expected.items() and set(written) == FILES - {"README.md"}


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_synthetic_checkpoint(tmp_path / name, "tiny", seed=seed, target=0.1)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert {name for name in FILES if a[name] != c[name]} == {"README.md", "model.safetensors"}


def test_a_quarter_of_the_layers_drafts_by_default(tmp_path: Path) -> None:
    assert write_synthetic_checkpoint(tmp_path / "m", "tiny", target=0.1).draft_exit == 2


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, float("nan")])
def test_impossible_agreements_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="agreement must lie between 0 and 1"):
        Agreement(rate)
    with pytest.raises(ConfigError, match="tolerance must lie between 0 and 1"):
        Agreement(0.85, rate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft_exit": 8}, r"draft exit must lie in 1\.\.7, below the model's 8 layers, not 8"),
        ({"draft_exit": 0}, "draft exit must lie"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"target": 0.0}, "residual scale must lie in"),
        ({"target": float("nan")}, "residual scale must lie in"),
        ({"target": 65.0}, "residual scale must lie in"),
        ({"backend": "abacus"}, "abacus"),
    ],
)
def test_refusals_leave_nothing(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_synthetic_checkpoint(tmp_path / "m", "tiny", **changes)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        write_synthetic_checkpoint(tmp_path, "tiny", target=0.1)
    assert contents(tmp_path) == {"note": b"mine"}


class Interrupted(Exception):
    pass


def test_an_interrupted_calibration_leaves_nothing(tmp_path: Path) -> None:
    measured: list[DraftTally] = []

    def interrupt(scale: float, tally: DraftTally) -> None:
        measured.append(tally)
        raise Interrupted

    with pytest.raises(Interrupted):
        write_synthetic_checkpoint(tmp_path / "m", "tiny", threads=1, report=interrupt)
    assert len(measured) == 1 and not list(tmp_path.iterdir())


def test_distinct_share() -> None:
    assert distinct_share([[1, 2, 3, 4, 5]]) == 1.0
    assert distinct_share([[1] * 7]) == 0.25
    assert distinct_share([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0.5
    assert distinct_share([[1, 2]]) == 1.0

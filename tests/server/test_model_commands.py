"""`bitskip train` and `bitskip eval`, from a text file to a table."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from engine.config import ModelConfig
from server.cli import app

SHAPE = shlex.split(
    "--layers 4 --hidden 32 --heads 4 --head-dim 8 --feed-forward 64 --vocabulary 300 "
    "--context 64 --short-context 32 --batch-tokens 128 --heldout 6 --warmup 2"
)


def bitskip(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    stories = [f"Once there was a {n}th frog. It had {n * 7} flies for lunch." for n in range(80)]
    path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A finished run of three steps."""
    path = tmp_path_factory.mktemp("run")
    result = bitskip("train", path, "--data", text, "--steps", "3", *SHAPE)
    assert result.exit_code == 0, result.output
    assert f"bitskip pack {path / 'model'} OUT" in result.stdout.replace("\n", "")
    return path


def test_training_writes_a_log_and_a_model(run: Path) -> None:
    log = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3]
    assert (run / "model" / "model.safetensors").exists()


def test_a_run_goes_on_without_its_data(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    result = bitskip("train", copy, "--steps", "4", *SHAPE)
    assert result.exit_code == 0, result.output
    assert len((copy / "log.jsonl").read_text("utf-8").splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "9", "--learning-rate", "0.1"), "learning_rate was 0.0015, is 0.1"),
        (("--steps", "9", "--seed", "1", "--data", "other.txt"), "other choices"),
        ((), "one of max_steps, max_tokens and max_minutes"),
        (("--steps", "9", "--exits", "5"), "trained_exits must lie in 1..4"),
        (("--steps", "9", "--exits", "a"), "is not a list like"),
        (("--steps", "9", "--tokens", "9"), "one of max_steps, max_tokens and max_minutes"),
        (("--steps", "9", "--distill", "0.5"), "distill_weight was 0.0, is 0.5"),
        (("--steps", "9", "--variant", "v2"), "model.activation_bits was 8, is 4"),
        (
            ("--steps", "9", "--exit-schedule", "b"),
            "'b' is not one of 'all', 'rotating', 'gradual'",
        ),
    ],
)
def test_training_refuses_with_a_reason(
    run: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = bitskip("train", run, *SHAPE, *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model"
    result = bitskip("pack", run / "model", path)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def dense(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model whose exits were not trained."""
    path = tmp_path_factory.mktemp("dense")
    options = ("--variant", "dense", "--exit-loss-weight", "0", "--layer-dropout", "none")
    result = bitskip("train", path, "--data", text, "--steps", "3", *options, *SHAPE)
    assert result.exit_code == 0, result.output
    return path / "model"


@pytest.mark.parametrize("start", ["latent", "packed", "dense"])
def test_training_goes_on_from_a_checkpoint_and_compares(
    request: pytest.FixtureRequest, run: Path, text: Path, tmp_path: Path, start: str
) -> None:
    checkpoint = run / "model" if start == "latent" else request.getfixturevalue(start)
    result = bitskip(
        "train", tmp_path, "--from", checkpoint, "--data", text, "--heldout", "6", "--steps", "3",
        "--batch-tokens", "128", "--exits", "1,2", "--distill", "0.5",
        "--layer-dropout", "exponential",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = table_rows(result.stdout)
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert all(row[1].count("→") == row[2].count("→") == 1 for row in rows)
    assert [row[3].count("→") for row in rows] == [1, 1, 0], "full depth drafts for nobody"
    assert (tmp_path / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    old, new = (ModelConfig.from_directory(path) for path in (checkpoint, tmp_path / "model"))
    assert new == replace(old, weights="dense" if start == "dense" else "latent")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "3"), "--layers is the checkpoint's: it does not go with --from"),
        (("--variant", "v2"), "--variant is the checkpoint's"),
        ((), "a new run needs data"),
    ],
)
def test_a_checkpoint_to_go_on_from_decides_the_shape(
    run: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    arguments = ("--from", run / "model", "--steps", "1", "--batch-tokens", "128", *options)
    result = bitskip("train", tmp_path / "run", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_a_checkpoint_to_go_on_from_needs_its_tokenizer(
    run: Path, tmp_path: Path, text: Path
) -> None:
    start = shutil.copytree(run / "model", tmp_path / "model")
    (start / "tokenizer.json").unlink()
    arguments = ("--from", start, "--data", text, "--steps", "1", "--batch-tokens", "128")
    result = bitskip("train", tmp_path / "run", *arguments)
    assert result.exit_code == 1
    assert "has no tokenizer.json" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("v2", ("bitskip_v2_earlyexit", 4)),
        ("v3", ("bitskip_v3_earlyexit", 8)),
        ("dense", ("llama", None)),
    ],
)
def test_variants_are_trained_by_name(
    text: Path, tmp_path: Path, variant: str, expected: tuple[str, int | None]
) -> None:
    result = bitskip(
        "train", tmp_path, "--data", text, "--steps", "1", "--variant", variant, *SHAPE
    )
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    assert (config["model_type"], config.get("activation_bits")) == expected


def table_rows(output: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in output.splitlines()
        if line.startswith("│")
    ]


def test_what_was_trained_can_be_evaluated(run: Path) -> None:
    arguments = ("--data", run / "heldout.txt", "--exits", "1,2", "--quick", "--threads", "1")
    result = bitskip("eval", run / "model", *arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.partition("speed-up")[0].splitlines()
    rows = [line.split() for line in lines if re.match(r" *\d+ +\d+\.\d\d ", line)]
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert rows[-1][2] == "100.0%" and len(rows[-1]) == len(rows[0]) - 2
    assert all(float(row[1]) > 1.0 for row in rows)
    assert all(row[3].endswith("%") and float(row[4]) >= 1.0 for row in rows[:-1])

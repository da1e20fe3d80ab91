"""`bitskip train` and `bitskip eval`, from a text file to a table."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

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
        ((), "max_steps or max_minutes"),
        (("--steps", "9", "--exits", "5"), "trained_exits must lie in 1..4"),
        (("--steps", "9", "--exits", "a"), "is not a list like"),
        (("--steps", "9", "--exit-schedule", "b"), "all or rotating"),
    ],
)
def test_training_refuses_with_a_reason(
    run: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = bitskip("train", run, *SHAPE, *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())


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

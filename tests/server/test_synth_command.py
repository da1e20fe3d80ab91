"""`bitskip synth`, run as a command."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from engine.evaluation.synthetic import calibration
from server.cli import app


def synth(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["synth", *map(str, arguments)], env={"COLUMNS": "80"})


def test_a_given_scale_is_written_at_once(tmp_path: Path) -> None:
    out = tmp_path / "m"
    done = synth(out, "--shape", "tiny", "--draft-exit", "3", "--residual-scale", "0.05")
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line == f"synthetic model of 3.3 MB in {out}: draft exit 3, residual scale 0.05"
    assert done.stdout == "" and (out / "model.safetensors").exists()


def test_a_calibration_tells_its_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "COARSE_TOKENS", 8)
    monkeypatch.setattr(calibration, "FULL_TOKENS", 20)
    out = tmp_path / "m"
    target = ("--agreement", "0.8", "--tolerance", "0.1")
    done = synth(out, "--shape", "tiny", *target, "--backend", "auto", "--threads", "1")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if line]
    assert all("drafts accepted (" in line for line in lines[:-1]) and len(lines) > 3
    assert "; agreement 0." in lines[-1] and "four-token runs distinct" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--agreement", "1"), "agreement must lie between 0 and 1"),
        (("--draft-exit", "8"), "draft exit must lie in 1..7"),
        (("--shape", "huge"), "shape 'huge' is not known"),
        (("--seed", "-1"), "seed must be at least 0"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = synth(tmp_path / "m", "--shape", "tiny", *arguments)
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.iterdir())


def test_agreement_and_scale_exclude_each_other(tmp_path: Path) -> None:
    done = synth(tmp_path / "m", "--agreement", "0.5", "--residual-scale", "0.1")
    assert done.exit_code == 2
    assert "excludes --agreement" in " ".join(done.stderr.replace("│", " ").split())

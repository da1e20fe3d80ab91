"""Which exit should draft, by what was measured of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import CheckpointError
from engine.evaluation.draft_exit import best_draft_exit, save_draft_exit
from engine.evaluation.scores import ExitScore, ModelScores
from support.memory_checkpoint import tiny_config

MODEL = tiny_config(num_layers=12, vocab_size=100)


def report(**lengths: float | None) -> ModelScores:
    """A report of exits eN whose rounds of 4 drafts bring so many tokens."""
    exits = [ExitScore(int(name[1:]), 9.0, 1.0, 0.5, 0.0, 0.5, n) for name, n in lengths.items()]
    return ModelScores(1, 100, 400, 64, 4, tuple(exits))


def test_a_shallow_exit_wins_if_its_drafts_stand_as_often() -> None:
    best = best_draft_exit(report(e3=3.0, e6=3.0, e12=None), MODEL, 50)
    assert best is not None and best.exit_layer == 3


def test_a_deep_exit_wins_if_shallow_drafts_fall() -> None:
    best = best_draft_exit(report(e1=1.01, e4=4.6), MODEL, 50)
    assert best is not None and (best.exit_layer, best.speedup > 1) == (4, True)


def test_drafts_that_mostly_fall_are_short_and_bring_nothing() -> None:
    best = best_draft_exit(report(e6=1.1), MODEL, 50)
    assert best is not None and best.num_speculations == 1 and best.speedup < 1


def test_without_drafts_there_is_no_answer() -> None:
    assert best_draft_exit(report(e6=None, e12=None), MODEL, 50) is None


def test_the_exit_is_kept_beside_everything_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"note": "ü", "draft_exit_layer": 9}')
    save_draft_exit(tmp_path, 3)
    kept = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert kept == {"note": "ü", "draft_exit_layer": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: the draft exit cannot be written"):
        save_draft_exit(tmp_path, 3)

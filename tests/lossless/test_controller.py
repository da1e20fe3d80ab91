"""Whatever the controller decides, from whichever clock, tokens stay what they are."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

import engine.rounds
from engine.speculative.controller import NOTHING, Choice, DraftController, DraftRound
from engine.speculative.planning import NO_LOAD, Candidate, Load
from support.coverage_record import Coverage
from support.engine_runs import EngineRun, differences
from support.history_models import make_model
from support.lossless_histories import THEMES, make_history

NAMES = tuple(THEMES)
PAIRS = tuple((name, NAMES[(index + 7) % len(NAMES)]) for index, name in enumerate(NAMES))


class _ErraticRound(DraftRound):
    """Lets random sequences stop, and learns nothing."""

    rng: random.Random

    def note(self, index: int, confidence: float) -> None:
        assert 0.0 <= confidence <= 1.0

    def proceed(self, active: Sequence[int]) -> list[int]:
        return [index for index in active if self.rng.random() < 0.8]

    def judge(self, index: int, num_drafts: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_drafts


class _ErraticController(DraftController):
    """Any number of drafts up to the limit, from anywhere, for everybody."""

    rng: random.Random

    def begin_round(self, candidates: Sequence[Candidate], prefill: Load = NO_LOAD) -> DraftRound:
        drafting = super().begin_round(candidates, prefill)
        choices = [
            Choice(self.rng.randint(0, candidate.limit), self.rng.choice(candidate.exits))
            if candidate.exits
            else NOTHING
            for candidate in candidates
        ]
        drafting.choices = choices
        drafting.__class__ = _ErraticRound
        assert isinstance(drafting, _ErraticRound)
        drafting.rng = self.rng
        return drafting


@pytest.mark.parametrize("themes", PAIRS, ids="-".join)
def test_erratic_drafts_change_no_token(
    themes: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ErraticController, "rng", random.Random(repr(themes)), raising=False)
    monkeypatch.setattr(engine.rounds, "DraftController", _ErraticController)
    history = make_history("fake", themes, 1)
    model = make_model("fake", history.spec)
    run = EngineRun(model, model.make_backend(), history.config, history.seed)
    coverage = Coverage()
    answers = run.answer(history.submissions, coverage.see_step)
    assert list(differences(run, history.submissions, answers)) == []

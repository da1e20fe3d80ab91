"""Who picks a token: the backend where it can, `sample` where more is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.backends.drawing import draw_draft_rows, draw_rows
from engine.backends.protocol import Draw
from engine.types import SamplingParams, SpeculativeParams
from support.engine_parts import make_parts, run_to_end
from support.fake_backend import FakeBackend, fake_config
from support.hashing import Words

EOS = 60
CONFIG = fake_config(eos_token_ids=(EOS,))
PROMPT = (3, 1, 4, 1, 5)


class AskedBackend(FakeBackend):
    """Notes, by position, the calls that pick a token."""

    def __init__(self) -> None:
        super().__init__(CONFIG, agreement=0.8)
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.draws: list[Draw] = []
        self._positions: list[int] = []

    def sweep(self, sweep: Any) -> Words:
        self._positions = [row.position for row in sweep.rows]
        return super().sweep(sweep)

    def _note(self, name: str, rows: Sequence[int]) -> None:
        self.calls.append((name, tuple(self._positions[row] + 1 for row in rows)))

    def head(self, residuals: Any, rows: Any, depths: Any) -> Any:
        self._note("head", rows)
        return super().head(residuals, rows, depths)

    def draft_head(self, residuals: Any, rows: Any, depths: Any) -> Any:
        self._note("draft_head", rows)
        return super().draft_head(residuals, rows, depths)

    def draw(self, residuals: Any, rows: Any, depths: Any, draws: Any) -> Any:
        self._note("draw", rows)
        self.draws += draws
        return draw_rows(super().head(residuals, rows, depths), draws)

    def draw_drafts(self, residuals: Any, rows: Any, depths: Any, draws: Any) -> Any:
        self._note("draw_drafts", rows)
        self.draws += draws
        return draw_draft_rows(super().draft_head(residuals, rows, depths), draws, self.draft_ids)

    def asked(self, *names: str) -> set[int]:
        """The positions for which any of these calls came."""
        return {
            position for name, positions in self.calls if name in names for position in positions
        }


def run(num_drafts: int, num_requests: int = 1, **fields: Any) -> tuple[AskedBackend, list[int]]:
    backend = AskedBackend()
    parts = make_parts(backend, draft_exit_layer=2)
    fields = {"max_tokens": 16, "ignore_eos": True, "seed": 5, **fields}
    speculative = SpeculativeParams(num_speculations=num_drafts)
    params = SamplingParams(**fields, speculative=speculative)
    for number in range(num_requests):
        parts.core.add(parts.intake.make_requests(f"r{number}", PROMPT, params))
    ledger = run_to_end(parts.core)
    return backend, ledger.token_ids("r0")


@pytest.mark.parametrize(
    ("fields", "scored"),
    [
        ({}, set()),
        ({"temperature": 0.0, "top_k": 3}, set()),
        ({"top_p": 0.9}, set(range(5, 21))),
        ({"logprobs": 0}, set(range(5, 21))),
        # EOS is banned for the first six tokens, and only there is more than a draw needed.
        ({"min_tokens": 6}, set(range(5, 11))),
    ],
)
def test_the_path_of_a_position_is_the_same_with_drafts_and_without(
    fields: dict[str, Any], scored: set[int]
) -> None:
    plain, tokens = run(0, **fields)
    assert (plain.asked("head"), plain.asked("draw")) == (scored, set(range(5, 21)) - scored)
    drafted, same_tokens = run(4, **fields)
    assert drafted.asked("head") == scored
    assert drafted.asked("draw") == set(range(5, 21)) - scored
    assert tokens == same_tokens


def test_drafts_need_no_logits_to_report() -> None:
    backend, _ = run(4, logprobs=3)
    assert backend.asked("draw_drafts") and not backend.asked("draft_head")


def test_a_pass_draws_for_everybody_at_once() -> None:
    backend, _ = run(3, num_requests=3)
    assert len(backend.calls) == backend.counters.num_sweeps
    assert max(len(positions) for name, positions in backend.calls if name == "draw_drafts") == 3
    assert max(len(positions) for name, positions in backend.calls if name == "draw") == 12


def test_a_draw_is_by_temperature_seed_and_position() -> None:
    backend, _ = run(2, temperature=0.7, seed=-3)
    assert {(draw.temperature, draw.seed) for draw in backend.draws} == {(0.7, 2**64 - 3)}
    positions = [position for _, positions in backend.calls for position in positions]
    assert [draw.position for draw in backend.draws] == positions


class NaNBackend(FakeBackend):
    """Drafts from logits that are not numbers."""

    def draft_head(self, residuals: Any, rows: Any, depths: Any) -> Any:
        return np.full_like(super().draft_head(residuals, rows, depths), np.nan)


def test_drafting_stops_where_the_draft_head_says_nothing() -> None:
    parts = make_parts(NaNBackend(CONFIG), draft_exit_layer=2)
    speculative = SpeculativeParams(num_speculations=3)
    params = SamplingParams(max_tokens=6, ignore_eos=True, temperature=0.0, speculative=speculative)
    parts.core.add(parts.intake.make_requests("r", PROMPT, params))
    output = run_to_end(parts.core).last("r")
    assert output.metrics is not None and output.metrics.speculation is None

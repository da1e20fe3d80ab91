"""The prefill budget: measured cost in, rows out."""

from __future__ import annotations

import pytest

from engine.scheduler.budget import PrefillBudget


def budget(budget_s: float = 0.1, max_rows: int = 512, min_rows: int = 16) -> PrefillBudget:
    return PrefillBudget(budget_s, max_rows, min_rows)


def test_nobody_decoding_means_all_rows() -> None:
    subject = budget()
    subject.observe(1, 1000.0)
    assert subject.num_rows(24, anyone_decodes=False) == 512


def test_before_any_measurement_one_block_is_read() -> None:
    assert budget().num_rows(24, anyone_decodes=True) == 16


def test_the_budget_is_divided_by_the_measured_cost() -> None:
    subject = budget(budget_s=0.1)
    subject.observe(num_row_layers=1000, duration_s=0.1)
    assert subject.num_rows(10, anyone_decodes=True) == 100
    assert subject.num_rows(5, anyone_decodes=True) == 200


def test_new_measurements_weigh_a_fifth() -> None:
    subject = budget(budget_s=1.0, max_rows=10_000, min_rows=1)
    subject.observe(100, 0.1)
    subject.observe(100, 0.6)
    assert subject.num_rows(1, anyone_decodes=True) == 500


@pytest.mark.parametrize(("cost_s", "rows"), [(10.0, 16), (1e-9, 512)])
def test_rows_stay_between_one_block_and_the_sweep(cost_s: float, rows: int) -> None:
    subject = budget()
    subject.observe(1, cost_s)
    assert subject.num_rows(24, anyone_decodes=True) == rows


def test_a_block_wider_than_the_sweep_is_cut() -> None:
    assert budget(max_rows=8, min_rows=16).num_rows(24, anyone_decodes=True) == 8


@pytest.mark.parametrize(("row_layers", "duration_s"), [(0, 1.0), (10, 0.0)])
def test_measurements_that_say_nothing_are_harmless(row_layers: int, duration_s: float) -> None:
    subject = budget()
    subject.observe(row_layers, duration_s)
    assert subject.num_rows(24, anyone_decodes=True) == 16

"""What the cost model learns of passes, and from whom."""

from __future__ import annotations

import pytest

from engine.speculative.costs import CostFormula, CostModel, PassShape
from support.fake_backend import fake_config

DRAFT = PassShape(True, 6, 6, 1)
PLAIN = PassShape(False, 24, 24, 1)
VERIFY = PassShape(False, 24, 24 + 3 * 18, 4)
"""One with three drafts: on this machine, three times as dear as the formula thinks."""


def test_the_formula_weighs_the_head_by_the_bytes_of_both() -> None:
    def head(head_dtype: str, linear_dtype: str) -> float:
        return CostFormula.of(fake_config(), head_dtype, 8, linear_dtype).head

    assert head("bf16", "bf16") == pytest.approx(head("int8", "int8"))
    assert head("int8", "ternary") == pytest.approx(8 * head("int8", "bf16"))
    assert head("fp32", "int8") == pytest.approx(4 * head("int8", "int8"))


def machine(shape: PassShape) -> float:
    """Seconds that a pass takes."""
    return {DRAFT: 0.001, PLAIN: 0.005, VERIFY: 0.02}[shape]


def observe(costs: CostModel, *shapes: PassShape, times: int) -> None:
    for _ in range(times):
        for shape in shapes:
            costs.observe(shape, machine(shape))


@pytest.fixture
def costs() -> CostModel:
    """Knows drafts and plain passes well."""
    model = CostModel(CostFormula(8.0, 1.0))
    observe(model, DRAFT, PLAIN, times=60)
    return model


def ratio(costs: CostModel) -> float:
    return costs.predict(PLAIN) / costs.predict(DRAFT)


def test_ratios_of_known_passes_are_theirs(costs: CostModel) -> None:
    assert ratio(costs) == pytest.approx(5.0, rel=0.1)


def test_a_new_kind_of_passes_is_learned_from_known_ones(costs: CostModel) -> None:
    observe(costs, DRAFT, DRAFT, DRAFT, VERIFY, times=20)
    assert costs.predict(VERIFY) / costs.predict(DRAFT) == pytest.approx(20.0, rel=0.15)


def test_a_new_kind_of_passes_does_not_unsettle_known_ones(costs: CostModel) -> None:
    """Its passes change, which its median takes a while to notice: the others must not adapt."""
    before = ratio(costs)
    observe(costs, DRAFT, VERIFY, times=12)
    for _ in range(13):
        costs.observe(DRAFT, machine(DRAFT))
        costs.observe(VERIFY, 4 * machine(VERIFY))
    assert ratio(costs) == pytest.approx(before, rel=0.05)


def test_a_machine_that_slows_down_as_a_whole_changes_no_ratio(costs: CostModel) -> None:
    before, plain_s = ratio(costs), costs.predict(PLAIN)
    for _ in range(30):
        for shape in (DRAFT, PLAIN):
            costs.observe(shape, 2 * machine(shape))
    assert ratio(costs) == pytest.approx(before, rel=0.02)
    assert costs.predict(PLAIN) == pytest.approx(2 * plain_s, rel=0.05)

"""The controller on simulated machines: nearly as fast as the best choice in hindsight."""

from __future__ import annotations

import pytest

from support.speculation_sim import Changing, Machine, Simulation, best_fixed_rate

WARM_UP, ROUNDS = 150, 600
FREE_ROWS = Machine(row=0.1)
COSTLY_ROWS = Machine(row=0.65)
PAIRED_ROWS = Machine(row=0.2, group=4)


@pytest.mark.parametrize(
    "machine", [FREE_ROWS, COSTLY_ROWS, PAIRED_ROWS], ids=["free", "costly", "groups"]
)
@pytest.mark.parametrize("acceptance", [0.5, 0.7, 0.85, 0.95])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_goodput_is_close_to_the_best_fixed_length(
    machine: Machine, acceptance: float, count: int
) -> None:
    acceptances = [acceptance] * count
    best, _ = best_fixed_rate(machine, acceptances)
    simulation = Simulation(machine, acceptances, seed=1)
    simulation.run(WARM_UP)
    assert simulation.run(ROUNDS) >= 0.95 * best


def test_drafts_stop_where_they_never_stand() -> None:
    simulation = Simulation(COSTLY_ROWS, [0.02], seed=2)
    simulation.run(WARM_UP)
    del simulation.lengths[:]
    simulation.run(ROUNDS)
    assert sum(simulation.lengths) < 0.05 * ROUNDS


def test_drafts_are_long_where_they_stand_and_rows_are_cheap() -> None:
    simulation = Simulation(FREE_ROWS, [0.95], seed=3)
    simulation.run(WARM_UP)
    del simulation.lengths[:]
    simulation.run(ROUNDS)
    assert sum(simulation.lengths) > 3 * ROUNDS


def test_sequences_differ() -> None:
    """In one batch, one whose drafts fail gets fewer than one whose drafts stand."""
    simulation = Simulation(FREE_ROWS, [0.1, 0.95], seed=4)
    simulation.run(WARM_UP)
    del simulation.lengths[:]
    simulation.run(ROUNDS)
    failing, standing = simulation.lengths[::2], simulation.lengths[1::2]
    assert sum(standing) > 5 * sum(failing)


def test_a_machine_that_changes_is_followed() -> None:
    """First every row costs, then four cost hardly more than two: two must try together."""
    machine = Changing(COSTLY_ROWS, Machine(row=0.45, group=4), stretch=400)
    acceptances = [0.6, 0.6]
    simulation = Simulation(machine, acceptances, seed=6)
    simulation.noise.speeds = (1.0,)
    shares: list[float] = []
    for _ in range(6):
        simulation.run(150)  # To find out.
        best, _ = best_fixed_rate(machine.now, acceptances)
        shares.append(simulation.run(250) / best)
    assert min(shares) >= 0.95


@pytest.mark.parametrize(("around_s", "drafts"), [(0.0, True), (0.02, False)])
def test_what_surrounds_draft_passes_counts(around_s: float, drafts: bool) -> None:
    """A host that is slow between draft passes makes drafts dear, though passes are quick."""
    simulation = Simulation(FREE_ROWS, [0.85], seed=5, around_drafts_s=around_s)
    simulation.run(WARM_UP)
    del simulation.lengths[:]
    simulation.run(ROUNDS)
    mean = sum(simulation.lengths) / ROUNDS
    assert mean > 1.5 if drafts else mean < 0.3


@pytest.mark.parametrize("acceptance", [0.02, 0.9])
def test_where_planning_is_dear_a_plan_serves_more_rounds(acceptance: float) -> None:
    shares: list[float] = []
    for planning_s in (0.0, 0.005):
        simulation = Simulation(FREE_ROWS, [acceptance], seed=7, planning_s=planning_s)
        simulation.run(WARM_UP)
        simulation.num_plans = 0
        simulation.run(ROUNDS)
        shares.append(simulation.num_plans / ROUNDS)
    assert shares[1] < 0.75 * shares[0]

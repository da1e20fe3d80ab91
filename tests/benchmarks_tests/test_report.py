"""Tables from results, and the targets that they are held to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import report as report_module
from benchmarks.bench import Contender
from benchmarks.report import noise_table, pivot, report, target_table
from benchmarks.results import SectionResult, Series
from benchmarks.sections.speculation import finalists
from benchmarks.targets import (
    TARGETS,
    Target,
    auto_error,
    auto_over_best,
    middle,
    ratio,
    worst_auto,
)


def series(system: str, samples: list[float], **case: str | int | float) -> Series:
    return Series(system, case, "tok/s", samples)


def decode() -> SectionResult:
    return SectionResult(
        "decode",
        {"commit": "abc", "load_average_before": [0.1, 0.2, 0.3]},
        [
            series("bitskip", [60.0, 66.0, 63.0], sequences=1),
            series("llama.cpp", [40.0, 44.0, 42.0], sequences=1),
        ],
        complete=True,
    )


def speculation() -> SectionResult:
    """With 8 sequences `auto` is worse than plain, with one it is better than everything."""
    speeds = {("plain", 1): 10.0, ("3", 1): 15.0, ("auto", 1): 18.0,
              ("plain", 8): 80.0, ("3", 8): 60.0, ("auto", 8): 72.0}  # fmt: skip
    return SectionResult(
        "speculation",
        series=[
            series("bitskip", [speed] * 3, agreement=0.85, sequences=sequences, mode=mode)
            for (mode, sequences), speed in speeds.items()
        ],
    )


@pytest.mark.parametrize(
    ("must", "at_most", "verdict"),
    [
        (1.4, False, "yes"),
        (1.6, False, "NO"),
        (1.6, True, "yes"),
        (1.4, True, "NO"),
        (None, False, ""),
    ],
)
def test_a_target_is_held_against_its_bound(
    monkeypatch: pytest.MonkeyPatch, must: float | None, at_most: bool, verdict: str
) -> None:
    figure = ratio({"system": "bitskip"}, {"system": "llama.cpp"})
    target = Target("decode", "plain decode", "× llama.cpp", figure, must, at_most)
    monkeypatch.setattr(report_module, "TARGETS", (target,))
    (line,) = target_table({"decode": decode()}).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    bound = "" if must is None else f"{'≤' if at_most else '≥'} {must}"
    assert cells == ["plain decode", "× llama.cpp", bound, "1.5", verdict]


def test_targets_of_sections_that_did_not_run_are_left_out() -> None:
    assert target_table({}).count("\n") == 1
    lines = target_table({"decode": decode()}).splitlines()[2:]
    assert len(lines) == 1, "one sequence against llama.cpp is all that was measured"


def test_every_target_copes_with_a_section_without_samples() -> None:
    assert [target.figure(SectionResult(target.section)) for target in TARGETS] == [None] * len(
        TARGETS
    )


def test_auto_is_compared_with_the_best_of_all_other_modes() -> None:
    result = speculation()
    assert auto_over_best(result, agreement=0.85, sequences=1) == 1.2
    assert auto_over_best(result, agreement=0.85, sequences=8) == 0.9
    assert worst_auto(result) == 0.9


def test_a_figure_may_be_a_note() -> None:
    result = decode()
    result.series[0].notes["RssAnon"] = [30.0, 10.0, 20.0]
    assert middle({"system": "bitskip"}, "RssAnon")(result) == 20.0
    assert middle({"system": "llama.cpp"}, "RssAnon")(result) is None


def test_a_pivot_leaves_missing_cells_empty() -> None:
    result = decode()
    result.series.append(series("bitskip", [90.0], sequences=2))
    assert pivot(result.series, "sequences", "system").splitlines()[2:] == [
        "| 1 | 63 | 42 |",
        "| 2 | 90 |  |",
    ]


def test_auto_is_held_against_modes_that_were_not_given_up() -> None:
    """Clearly slower after two samples, and not there in the machine's slow spell that followed."""
    result = SectionResult(
        "speculation",
        series=[
            series("bitskip", samples, sequences=1, mode=mode)
            for mode, samples in {
                "plain": [8.0, 8.0],
                "2": [10.0, 10.0, 5.0, 5.0],
                "auto": [9.0, 9.0, 4.5, 4.5],
            }.items()
        ],
    )
    assert auto_over_best(result, sequences=1) == pytest.approx(0.9)
    assert auto_error(result, sequences=1) == pytest.approx(0.0)


def test_close_calls_are_measured_on() -> None:
    medians = {"plain": 10.0, "1": 9.1, "2": 8.9, "auto": 5.0}
    modes = [series("bitskip", [median], mode=mode) for mode, median in medians.items()]
    contenders = [Contender("bitskip", "tok/s", None, None, own.case) for own in modes]  # pyright: ignore[reportArgumentType]
    assert [each.case["mode"] for each in finalists(contenders, modes)] == ["plain", "1", "auto"]


def test_noise_is_told() -> None:
    noisy = decode()
    noisy.series[1].notes["foreign_cores"] = [0.0, 1.5, 0.0]
    interrupted = replace(speculation(), complete=False)
    lines = noise_table({"decode": noisy, "speculation": interrupted}).splitlines()
    assert lines[2] == "| decode | 0.0952 | 1.5 | 0 | 0.1, 0.2, 0.3 |  |"
    assert lines[3].endswith("| interrupted |")


def test_a_report_shows_every_section_and_agreement() -> None:
    drafting = speculation()
    single = series("bitskip", [12.0], agreement=0.85, sequences=1, mode="1")
    single.notes["acceptance"] = [0.5, 0.85, 0.9]
    drafting.series.insert(0, single)
    text = report({"decode": decode(), "speculation": drafting})
    assert "| 1 | 12 | 10 | 15 | 18 | 1.200 ± 0.000 | 85% |" in text
    assert "| 8 |  | 80 | 60 | 72 | 0.900 ± 0.000 |  |" in text
    assert "Agreement 85% (synthetic)" in text
    assert "commits: None, abc" in text

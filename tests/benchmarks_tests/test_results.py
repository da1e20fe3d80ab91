"""Results survive the way to disk, section by section."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import SectionResult, Series, read_results


def section(name: str, *samples: float) -> SectionResult:
    series = Series("bitskip", {"sequences": 4, "mode": "auto"}, "tok/s")
    for sample in samples:
        series.add(sample, {"acceptance": sample / 10})
    return SectionResult(name, {"commit": "abc"}, [series], complete=True)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    saved = section("decode", 1.0, 3.0, 2.0)
    saved.save(tmp_path)
    assert read_results(tmp_path) == {"decode": saved}
    assert [path.name for path in tmp_path.iterdir()] == ["decode.json"]


def test_a_section_that_runs_again_replaces_its_own_results_only(tmp_path: Path) -> None:
    section("decode", 1.0).save(tmp_path)
    section("prefill", 5.0).save(tmp_path)
    section("decode", 2.0).save(tmp_path)
    results = read_results(tmp_path)
    assert {name: result.series[0].samples for name, result in results.items()} == {
        "decode": [2.0],
        "prefill": [5.0],
    }


def test_series_are_found_by_system_and_by_part_of_their_case() -> None:
    result = section("decode", 4.0)
    result.series.append(Series("bitskip", {"sequences": 8, "mode": "auto"}, "tok/s"))
    assert result.find("bitskip", sequences=4) is result.series[0]
    assert result.find("llama.cpp", sequences=4) is None
    assert result.find("bitskip", sequences=8) is None, "it has no samples yet"
    assert result.values("sequences") == [4, 8]


def test_a_note_is_the_median_of_its_samples() -> None:
    series = section("decode", 1.0, 3.0, 2.0).series[0]
    assert series.median == 2.0
    assert series.note("acceptance") == 0.2
    assert series.note("unheard of") is None

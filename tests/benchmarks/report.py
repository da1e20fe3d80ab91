"""From results to tables: Markdown, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.figures import spread
from benchmarks.results import SectionResult, Series
from benchmarks.targets import TARGETS, auto_error, auto_over_best

Results = Mapping[str, SectionResult]


def report(results: Results) -> str:
    """The whole report."""
    parts = [
        "# Benchmark",
        _conditions(results),
        "## Targets",
        target_table(results),
        *(_section(result) for result in results.values()),
        "## How quiet it was",
        noise_table(results),
    ]
    return "\n\n".join(parts) + "\n"


def target_table(results: Results) -> str:
    """What must be, and what is; lines whose sections were not run are left out."""
    rows = []
    for target in TARGETS:
        result = results.get(target.section)
        value = target.figure(result) if result else None
        if value is None:
            continue
        must = "" if target.must is None else f"{'≤' if target.at_most else '≥'} {target.must:g}"
        verdict = {True: "yes", False: "NO", None: ""}[target.holds(value)]
        rows.append((target.what, target.unit, must, _number(value), verdict))
    return table(("what", "in", "must", "measured", "holds"), rows)


def noise_table(results: Results) -> str:
    """For each section the worst spread, and what else used the machine."""
    rows = []
    for result in results.values():
        repeated = [series for series in result.series if len(series.samples) > 1]
        rows.append(
            (
                result.name,
                _number(max((spread(series.samples) for series in repeated), default=0.0)),
                _number(_worst(result.series, "foreign_cores")),
                _number(_worst(result.series, "idle_cores")),
                ", ".join(map(str, result.conditions.get("load_average_before", []))),
                "" if result.complete else "interrupted",
            )
        )
    head = ("section", "widest spread", "foreign cores", "idle cores", "load before", "")
    explained = (
        "Spread: (largest − smallest) / median of a series' samples. Foreign and idle cores: the "
        "most that processes outside the bench, and competitors that were waiting for their turn, "
        "used during any one sample."
    )
    return f"{table(head, rows)}\n\n{explained}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are aligned to the right."""
    lines = [
        "| " + " | ".join(head) + " |",
        "| --- |" + " ---: |" * (len(head) - 1),
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
    ]
    return "\n".join(lines)


def pivot(series: Iterable[Series], row: str, column: str) -> str:
    """Medians by two keys of their cases; the key `system` stands for the system."""

    def key(each: Series, name: str) -> str | int | float:
        return each.system if name == "system" else each.case[name]

    cells: dict[str | int | float, dict[str, Series]] = {}
    columns: dict[str, None] = {}
    for each in series:
        name = str(key(each, column))
        columns[name] = None
        cells.setdefault(key(each, row), {})[name] = each
    rows = [
        (label, *(_number(found[name].median) if name in found else "" for name in columns))
        for label, found in cells.items()
    ]
    return table((row, *columns), rows)


def _section(result: SectionResult) -> str:
    series = [each for each in result.series if each.samples]
    title = f"## {result.name}\n\n"
    if result.name in ("decode", "prefill"):
        row = "sequences" if result.name == "decode" else "tokens"
        return title + f"Tokens per second of all sequences together.\n\n{_by_system(series, row)}"
    if result.name == "speculation":
        return title + _speculation(result)
    return title + _listing(series)


def _by_system(series: list[Series], row: str) -> str:
    speeds = [each for each in series if each.unit == "tok/s"]
    others = [each for each in series if each.unit != "tok/s"]
    return pivot(speeds, row, "system") + ("\n\n" + _listing(others) if others else "")


def _speculation(result: SectionResult) -> str:
    """One table per agreement: tokens per second by number of sequences and mode."""
    parts = []
    for agreement in result.values("agreement"):
        rows = []
        modes = dict.fromkeys(str(each.case["mode"]) for each in result.select(agreement=agreement))
        for sequences in result.values("sequences"):
            found = {
                str(each.case["mode"]): each
                for each in result.select(agreement=agreement, sequences=sequences)
            }
            if not found:
                continue
            case = {"agreement": agreement, "sequences": sequences}
            ratio, error = auto_over_best(result, **case), auto_error(result, **case)
            single = found["1"].note("acceptance") if "1" in found else None
            rows.append(
                (
                    sequences,
                    *(_number(found[mode].median) if mode in found else "" for mode in modes),
                    "" if ratio is None or error is None else f"{ratio:.3f} ± {error:.3f}",
                    "" if single is None else f"{single:.0%}",
                )
            )
        head = ("sequences", *modes, "auto / best", "single drafts accepted")
        parts.append(f"Agreement {agreement:.0%} (synthetic), tok/s:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _listing(series: Iterable[Series]) -> str:
    rows = []
    for each in series:
        case = ", ".join(
            str(value) if isinstance(value, str) else f"{value} {name}"
            for name, value in each.case.items()
        )
        notes = ", ".join(
            f"{name} {_number(value)}"
            for name in each.notes
            if name not in ("foreign_cores", "idle_cores")
            and (value := each.note(name)) is not None
        )
        rows.append((f"{each.system}: {case}", _number(each.median), each.unit, notes))
    return table(("what", "median", "unit", "notes"), rows)


def _conditions(results: Results) -> str:
    """The machine, and the commits and options if all sections agree on them."""
    if not results:
        return "Nothing was measured."
    conditions = [result.conditions for result in results.values()]
    latest = max(conditions, key=lambda each: str(each.get("started", "")))
    lines = []
    for title, values in (
        ("machine", latest.get("machine", {})),
        ("versions", latest.get("versions", {})),
        ("options", latest.get("options", {})),
    ):
        facts = ", ".join(f"{name} {_plain(value)}" for name, value in values.items())
        lines.append(f"- {title}: {facts}")
    commits = sorted({str(each.get("commit")) for each in conditions})
    lines.append(f"- commits: {', '.join(commits)}")
    lines.append(f"- started: {min(str(each.get('started')) for each in conditions)}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _worst(series: Iterable[Series], note: str) -> float:
    return max((max(each.notes[note]) for each in series if note in each.notes), default=0.0)


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"

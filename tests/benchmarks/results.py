"""Samples on their way to disk and back: one JSON file per section.

A section's file is written anew after every repeat, so that an interrupted run keeps what it
has; a section that runs again replaces its own file and nobody else's. All files of a folder
together are the results of a bench.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

Case = Mapping[str, str | int | float]
"""What was measured, apart from the system: sequences, agreement, mode …"""


@dataclass(slots=True)
class Series:
    """The samples of one system in one case, in the order in which they were taken."""

    system: str
    case: dict[str, str | int | float]
    unit: str
    samples: list[float] = field(default_factory=list)
    notes: dict[str, list[float]] = field(default_factory=dict)
    """Further figures of each sample: acceptance, seconds, other processes' load …"""

    @property
    def median(self) -> float:
        """The middle sample."""
        return median(self.samples)

    def add(self, value: float, notes: Mapping[str, float]) -> None:
        """Append one sample."""
        self.samples.append(value)
        for name, note in notes.items():
            self.notes.setdefault(name, []).append(note)

    def note(self, name: str) -> float | None:
        """The median of a note; None if no sample has it."""
        values = self.notes.get(name)
        return median(values) if values else None


@dataclass(slots=True)
class SectionResult:
    """Everything that one section measured, and under which conditions."""

    name: str
    conditions: dict[str, Any] = field(default_factory=dict)
    """Machine, versions, options, commit and load."""
    series: list[Series] = field(default_factory=list)
    complete: bool = False

    def find(self, system: str, **case: str | int | float) -> Series | None:
        """The series of a system whose case holds at least these values, if it has samples."""
        for series in self.select(**case):
            if series.system == system:
                return series
        return None

    def select(self, **case: str | int | float) -> Iterator[Series]:
        """The series with samples whose case holds at least these values."""
        for series in self.series:
            if series.samples and case.items() <= series.case.items():
                yield series

    def values(self, key: str) -> list[Any]:
        """The different values of a case's key, ascending."""
        return sorted({series.case[key] for series in self.series if key in series.case})

    def save(self, folder: Path) -> None:
        """Write `folder/NAME.json`; a reader sees the old file or the new one, never half."""
        folder.mkdir(parents=True, exist_ok=True)
        staging = folder / f".{self.name}.{os.getpid()}.partial"
        staging.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        staging.replace(folder / f"{self.name}.json")


def read_results(folder: Path) -> dict[str, SectionResult]:
    """The sections whose files lie in a folder, by name."""
    results = {}
    for file in sorted(folder.glob("*.json")):
        raw = json.loads(file.read_text(encoding="utf-8"))
        series = [Series(**item) for item in raw.pop("series")]
        results[raw["name"]] = SectionResult(**raw, series=series)
    return results

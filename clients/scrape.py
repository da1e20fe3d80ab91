"""What /metrics says, as numbers that can be asked for by name and label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of the exposition."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Scrape:
    """One answer of /metrics."""

    samples: tuple[Sample, ...]

    def matching(self, name: str, **labels: object) -> Iterator[Sample]:
        """The samples of this name whose labels have these values, whatever else they carry."""
        wanted = {key: str(value) for key, value in labels.items()}
        for sample in self.samples:
            if sample.name == name and wanted.items() <= sample.labels.items():
                yield sample

    def total(self, name: str, **labels: object) -> float:
        """Their sum; 0 where there is none. `name` is the whole one, with `_total` or `_sum`."""
        return sum(sample.value for sample in self.matching(name, **labels))


def parse_scrape(text: str) -> Scrape:
    """Read Prometheus' text format; raises `ValueError` for anything else."""
    return Scrape(
        tuple(
            Sample(sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )
    )

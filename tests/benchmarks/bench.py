"""What sections work with: workers and servers that are watched, and a recorder of samples."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.models import Models
from benchmarks.options import Options
from benchmarks.results import Case, SectionResult, Series
from benchmarks.serving import Server
from benchmarks.worker import ROOT, Worker, python_environment

logger = logging.getLogger("bench")

SETTLE_S = 0.05
"""Pause before each sample: OpenMP's threads spin for some milliseconds after their last work."""
IDLE_LIMIT = 0.05
"""Cores that all idle competitors together may use while another one is measured."""


class Sample(NamedTuple):
    """One measurement, and what else it told."""

    value: float
    notes: Mapping[str, float | None] = {}


@dataclass(frozen=True, slots=True)
class Contender:
    """One of the systems, or settings, that take turns."""

    system: str
    unit: str
    process: Worker | Server
    measure: Callable[[int], Sample]
    """Takes the repeat's number, from 0; −1 for the warm-up, which is not recorded."""
    case: Mapping[str, str | int | float]


class Bench:
    """Options, models and the processes that are alive."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.models = Models(options.work / "models", options.shape)
        self.alive: list[Worker | Server] = []

    @property
    def results(self) -> Path:
        """The folder of the sections' files."""
        return self.options.work / "results"

    @contextmanager
    def worker(self, name: str, **load: object) -> Iterator[Worker]:
        """A worker that has loaded, alive for a `with`."""
        log = self.options.work / "logs" / f"{name}-{len(self.alive)}.log"
        with Worker(name, log) as worker:
            logger.info("  %s loads: %s", name, worker.call("load", **load))
            with self._watched(worker):
                yield worker

    def engine_worker(self, checkpoint: Path, **load: object) -> AbstractContextManager[Worker]:
        """A worker that is ourselves, with a checkpoint, as the options say."""
        return self.worker(
            "engine",
            model=str(checkpoint),
            backend=self.options.backend,
            threads=self.options.threads,
            draft_exit=self.models.draft_exit,
            **load,
        )

    @contextmanager
    def server(
        self, command: Sequence[str | Path], port: int, **environment: str
    ) -> Iterator[Server]:
        """A server that has just been started, alive for a `with`."""
        log = self.options.work / "logs" / f"server-{len(self.alive)}.log"
        server = Server(command, port, log, python_environment(**environment))
        with server, self._watched(server):
            yield server

    @contextmanager
    def _watched(self, process: Worker | Server) -> Iterator[None]:
        self.alive.append(process)
        try:
            yield
        finally:
            self.alive.remove(process)

    def record(self, name: str) -> Recorder:
        """A recorder for a section that starts now."""
        conditions = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": machine.commit(ROOT),
            "options": {**asdict(self.options), "work": self.options.work.name},
            "machine": machine.describe(),
            "versions": machine.versions(),
            "load_average_before": machine.load_average(),
        }
        return Recorder(self, SectionResult(name, conditions))


class Recorder:
    """Takes a section's samples and keeps its file up to date."""

    def __init__(self, bench: Bench, result: SectionResult) -> None:
        self._bench = bench
        self.result = result

    def alternate(
        self,
        contenders: Sequence[Contender],
        repeats: int | None = None,
        warm_up: bool = True,
        first: int = 0,
    ) -> list[Series]:
        """Measure in turns, A B C A B C: what disturbs the machine disturbs everybody.

        Contenders that have samples get more of them; `first` is then the number of the first
        further repeat. Every sample notes how many cores the idle competitors used meanwhile
        (they should sleep), and how many the rest of the machine did. Returns everybody's series.
        """
        repeats = self._bench.options.repeats if repeats is None else repeats
        if warm_up:
            for contender in contenders:
                contender.measure(-1)
        series = [self._series(each.system, each.unit, each.case) for each in contenders]
        for repeat in range(first, first + repeats):
            for contender, own in zip(contenders, series, strict=True):
                sample, company = self._watch(contender, repeat)
                own.add(sample.value, {**_present(sample.notes), **company})
            self.result.save(self._bench.results)
        for own in series:
            logger.info("  %s", describe(own))
        return series

    def add(self, system: str, unit: str, sample: Sample, **case: str | int | float) -> None:
        """Record a sample that was taken in some other way."""
        known = self._series(system, unit, case)
        known.add(sample.value, _present(sample.notes))
        self.result.save(self._bench.results)
        logger.info("  %s", describe(known))

    def finish(self) -> None:
        """Mark the section as complete."""
        self.result.conditions["load_average_after"] = machine.load_average()
        self.result.conditions["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.result.complete = True
        self.result.save(self._bench.results)

    def _series(self, system: str, unit: str, case: Case) -> Series:
        """The series of a system in a case, made if it is new."""
        for series in self.result.series:
            if series.system == system and series.case == case:
                return series
        self.result.series.append(Series(system, dict(case), unit))
        return self.result.series[-1]

    def _watch(self, contender: Contender, repeat: int) -> tuple[Sample, dict[str, float]]:
        measured = contender.process.pid
        idle = [each.pid for each in self._bench.alive if each.pid != measured]
        time.sleep(SETTLE_S)
        before = _Usage.now(measured, idle)
        sample = contender.measure(repeat)
        used = _Usage.now(measured, idle).since(before)
        if used["idle_cores"] > IDLE_LIMIT:
            logger.warning(
                "  while %s was measured, idle competitors used %.2f cores",
                contender.system,
                used["idle_cores"],
            )
        return sample, used


class _Usage(NamedTuple):
    """Processor time so far, in seconds."""

    clock: float
    everybody: float
    measured: float
    idle: float
    bench: float

    @classmethod
    def now(cls, measured: int, idle: Sequence[int]) -> _Usage:
        return cls(
            time.perf_counter(),
            machine.busy_s(),
            machine.process_s([measured]),
            machine.process_s(idle),
            machine.process_s([os.getpid()]),
        )

    def since(self, before: _Usage) -> dict[str, float]:
        """Cores used by the idle competitors, and by processes that are not the bench's."""
        wall = self.clock - before.clock
        ours = sum(self[2:]) - sum(before[2:])
        foreign = self.everybody - before.everybody - ours
        return {
            "idle_cores": round((self.idle - before.idle) / wall, 3),
            "foreign_cores": round(max(0.0, foreign / wall), 3),
        }


def describe(series: Series) -> str:
    """One line for the log."""
    case = ", ".join(f"{name} {value}" for name, value in series.case.items())
    notes = ", ".join(f"{name} {series.note(name):.3g}" for name in series.notes)
    samples = f"{series.median:.4g} {series.unit} of {len(series.samples)}"
    return f"{series.system} [{case}]: {samples}" + (f" ({notes})" if notes else "")


def _present(notes: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in notes.items() if value is not None}

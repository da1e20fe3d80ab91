"""A whole benchmark: every load on every setting, one run after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from clients.bench.lengths import Lengths
from clients.bench.plan import Workload
from clients.bench.prompts import MadeUpText, ReadPrompt, made_up_text, read_prompts
from clients.bench.records import Report, RequestRecord, Run
from clients.bench.runner import Runner, Sampling
from clients.bench.server_side import server_figures
from clients.bench.settings import Load, Setting
from clients.bench.summary import summarise
from clients.client import AsyncClient
from clients.errors import APIError, NotFoundError
from clients.scrape import Scrape
from clients.types import Model

DEFAULT_INPUT = Lengths("fixed", 32)
DEFAULT_OUTPUT = Lengths("fixed", 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What a benchmark does."""

    loads: tuple[Load, ...]
    settings: tuple[Setting, ...]
    mix: bool = False
    """One run per load whose requests take the settings at random, not a run for each."""
    num_requests: int | None = 100
    duration_s: float | None = None
    max_concurrency: int | None = None
    """For rates: at most so many requests are open; those held back count as waiting."""
    prompts: Path | None = None
    """Absent: made-up prompts."""
    input_lengths: Lengths = DEFAULT_INPUT
    output_lengths: Lengths = DEFAULT_OUTPUT
    num_warmups: int = 4
    """Requests before each run that are not counted."""
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if (self.num_requests is None) == (self.duration_s is None):
            raise ValueError("a run ends after a number of requests or after a duration")
        if self.num_requests is not None and self.num_requests < 1:
            raise ValueError("a run has at least one request")
        if self.duration_s is not None and self.duration_s <= 0:
            raise ValueError("a duration must be above 0")
        if self.duration_s is not None and any(load.rate == float("inf") for load in self.loads):
            raise ValueError("an infinite rate needs a number of requests")
        if not self.loads or not self.settings:
            raise ValueError("at least one load and one setting are needed")
        for setting in self.settings:
            setting.checked()

    def to_dict(self) -> dict[str, str | int | float | bool | None]:
        """For the report."""
        return {
            "loads": ", ".join(map(str, self.loads)),
            "settings": "; ".join(map(str, self.settings)),
            "mix": self.mix,
            "num_requests": self.num_requests,
            "duration_s": self.duration_s,
            "max_concurrency": self.max_concurrency,
            "prompts": None if self.prompts is None else str(self.prompts),
            "input_lengths": str(self.input_lengths),
            "output_lengths": str(self.output_lengths),
            "num_warmups": self.num_warmups,
            "seed": self.seed,
            "temperature": self.sampling.temperature,
            "ignore_eos": self.sampling.ignore_eos,
        }


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run to come."""

    load: Load
    settings: tuple[Setting, ...]

    def __str__(self) -> str:
        what = self.settings[0] if len(self.settings) == 1 else f"mix of {len(self.settings)}"
        return f"{self.load}; {what}"


def run_plans(options: BenchOptions) -> list[RunPlan]:
    """The runs of a benchmark, in order."""
    groups = [options.settings] if options.mix else [(setting,) for setting in options.settings]
    return [RunPlan(load, group) for load in options.loads for group in groups]


async def run_bench(
    client: AsyncClient,
    options: BenchOptions,
    *,
    on_run: Callable[[RunPlan, int | None], None] = lambda plan, num_requests: None,
    on_finished: Callable[[RequestRecord], None] = lambda record: None,
) -> Report:
    """Run it all. `on_run` is told of each run's begin, `on_finished` of each request's end.

    Raises `ClientError` where the server cannot be asked at all, `ValueError` and `OSError` for
    prompts that cannot be read; failed requests are part of the report.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    model = await _model(client, options.sampling.model)
    workload = Workload(
        prompts=await _prompts(client, options),
        input_lengths=options.input_lengths,
        output_lengths=options.output_lengths,
        max_model_len=model.max_model_len,
        num_requests=options.num_requests,
        duration_s=options.duration_s,
        seed=options.seed,
    )
    runs = []
    for plan in run_plans(options):
        on_run(plan, options.num_requests)
        runs.append(await _run(client, options, workload, plan, on_finished))
    return Report(
        started_at=started_at,
        server_version=await client.version(),
        model=model.id,
        num_layers=model.num_layers,
        options=options.to_dict(),
        runs=tuple(runs),
    )


async def _model(client: AsyncClient, name: str | None) -> Model:
    models = await client.models()
    found = [model for model in models if name in (None, model.id)]
    if not found:
        names = ", ".join(model.id for model in models)
        raise ValueError(f"the server does not know {name!r}, only {names}")
    return found[0]


async def _prompts(
    client: AsyncClient, options: BenchOptions
) -> tuple[ReadPrompt, ...] | MadeUpText:
    if options.prompts is not None:
        return read_prompts(options.prompts)
    try:
        tokens = await client.tokenize(made_up_text(options.seed), add_special_tokens=False)
    except NotFoundError:
        raise ValueError("the server has no /tokenize to make prompts with: name a file") from None
    return MadeUpText(tokens.tokens)


async def _run(
    client: AsyncClient,
    options: BenchOptions,
    workload: Workload,
    plan: RunPlan,
    on_finished: Callable[[RequestRecord], None],
) -> Run:
    await _warm_up(client, options, workload, plan.settings)
    before = await _scrape(client)
    runner = Runner(client, options.sampling, on_finished=on_finished)
    records, lag_s = await runner.run(
        workload.schedule(plan.load, plan.settings),
        plan.load,
        max_concurrency=options.max_concurrency,
        duration_s=options.duration_s,
    )
    after = await _scrape(client)
    rate = plan.load.rate
    return Run(
        load=str(plan.load),
        settings=tuple(map(str, plan.settings)),
        rate=None if rate == float("inf") else rate,
        concurrency=plan.load.concurrency,
        summary=summarise(records, lag_s),
        server=None if before is None or after is None else server_figures(before, after),
        requests=records,
    )


async def _warm_up(
    client: AsyncClient, options: BenchOptions, workload: Workload, settings: Sequence[Setting]
) -> None:
    if not options.num_warmups:
        return
    # Of another seed: the run's own prompts must not be found in the prefix cache.
    other = replace(
        workload,
        num_requests=options.num_warmups,
        duration_s=None,
        seed=Random(f"{workload.seed}/warm-up").getrandbits(32),
    )
    load = Load(concurrency=options.num_warmups)
    await Runner(client, options.sampling).run(other.schedule(load, settings), load)


async def _scrape(client: AsyncClient) -> Scrape | None:
    try:
        return await client.metrics()
    except APIError:  # Guarded by a key that this client lacks.
        return None

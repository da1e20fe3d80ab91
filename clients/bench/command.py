"""`bitskip bench`: load on a running server, and what it makes of it."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.terminal.options import DEFAULT_URL, ApiKey, ModelName, Url, clean_errors

if TYPE_CHECKING:
    from clients.bench.records import Report
    from clients.bench.session import BenchOptions

LENGTHS_HELP = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA"


def bench(
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="R[,R...]",
            help="Requests per second, at random times (Poisson); inf sends all at once. "
            "A run for each.",
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="So many clients in a closed loop instead. A run for each. Default: 4.",
        ),
    ] = None,
    max_concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --rate: open requests at most; held back ones count as waiting."
        ),
    ] = None,
    num_requests: Annotated[
        int | None, typer.Option(min=1, help="Requests per run. Default: 100.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds for which a run sends requests instead.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts: one a line, or .jsonl of objects with prompt and, if they "
            "like, max_tokens, exit_layer, speculation. Default: made-up prompts."
        ),
    ] = None,
    input_len: Annotated[
        str, typer.Option(help=f"Tokens of made-up prompts: {LENGTHS_HELP}.")
    ] = "32",
    output_len: Annotated[str, typer.Option(help=f"Tokens of answers: {LENGTHS_HELP}.")] = "64",
    exit_layers: Annotated[
        str, typer.Option(metavar="E[,E...]", help="Exits that answer, as in 6,9,all. Swept.")
    ] = "all",
    speculation: Annotated[
        str,
        typer.Option(
            metavar="S[,S...]",
            help="How to draft: server (its default), off, auto, ngram, x4 (four drafts), 3x "
            "(by three layers), 3x4 (both). Swept.",
        ),
    ] = "server",
    mix: Annotated[
        bool,
        typer.Option("--mix", help="One run whose requests take exits and drafting at random."),
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos/--heed-eos", help="Whether answers have their full length."),
    ] = True,
    num_warmups: Annotated[
        int, typer.Option(min=0, help="Requests before each run that are not counted.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for figures and every request.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for pictures (needs the extra plots).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    model: ModelName = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Send load to a running server, and measure latencies, throughput and acceptance.

    With --rate, a latency counts from when its request was due, not from when it was sent: a
    server that stalls cannot make the wait disappear. Exit code 1 if a request failed.
    """
    if rate is not None and concurrency is not None:
        raise typer.BadParameter("it excludes --rate", param_hint="--concurrency")
    if num_requests is not None and duration is not None:
        raise typer.BadParameter("it excludes --num-requests", param_hint="--duration")
    if plots is not None and find_spec("matplotlib") is None:
        raise typer.BadParameter(
            "matplotlib is missing: pip install 'bitskip-server[plots]'", param_hint="--plots"
        )
    with clean_errors():
        from clients.bench.lengths import parse_lengths
        from clients.bench.runner import Sampling
        from clients.bench.session import BenchOptions
        from clients.bench.settings import parse_loads, parse_settings

        options = BenchOptions(
            loads=parse_loads(rate, concurrency),
            settings=parse_settings(exit_layers, speculation),
            mix=mix,
            num_requests=(num_requests or 100) if duration is None else None,
            duration_s=duration,
            max_concurrency=max_concurrency,
            prompts=prompts,
            input_lengths=parse_lengths(input_len),
            output_lengths=parse_lengths(output_len),
            num_warmups=num_warmups,
            seed=seed,
            sampling=Sampling(model, temperature, ignore_eos),
        )
        _check_writable(output, plots)
        report = _measure(url, api_key, options)
        _show(report, output, plots, as_json)
    if any(run.summary.num_failed for run in report.runs):
        raise typer.Exit(1)


def _check_writable(output: Path | None, plots: Path | None) -> None:
    """Make the folders to write into; raises `OSError` now, not when the load has been sent."""
    for folder in filter(None, (output and output.parent, plots)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            code = errno.ENOTDIR
            raise NotADirectoryError(code, os.strerror(code), error.filename) from error
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    if output is not None and output.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(output))


def _measure(url: str, api_key: str | None, options: BenchOptions) -> Report:
    from clients.bench.display import progress_bar
    from clients.bench.session import run_bench
    from clients.client import AsyncClient
    from clients.retries import NO_RETRIES

    async def measure() -> Report:
        # A refusal is a result here, not something to try again.
        async with AsyncClient(url, api_key=api_key, retry=NO_RETRIES) as client:
            with progress_bar() as (on_run, on_finished):
                return await run_bench(client, options, on_run=on_run, on_finished=on_finished)

    return asyncio.run(measure())


def _show(report: Report, output: Path | None, plots: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from clients.bench.display import print_report

    if output is not None:
        output.write_bytes(report.to_json())
    if as_json:
        sys.stdout.write(report.to_json().decode() + "\n")
    else:
        print_report(report, Console())
    if plots is not None:
        from clients.bench.plots import write_plots

        for path in write_plots(report, plots):
            Console(stderr=True).print(f"wrote {path}", style="dim", markup=False)

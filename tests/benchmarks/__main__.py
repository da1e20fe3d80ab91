"""The command line of the bench: `make bench ARGS="--only decode,prefill"`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.bench import Bench, Recorder
from benchmarks.options import Options
from benchmarks.report import report, target_table
from benchmarks.results import read_results

SECTIONS = (
    "decode",
    "prefill",
    "overhead",
    "loading",
    "servers",
    "demo",
    "packing",
    "speculation",
)
"""In the order in which they run."""

logger = logging.getLogger("bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections that were asked for, then report on all results there are."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    names = given.only.split(",") if given.only else list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        print(f"no such section: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    options = Options(
        work=given.work.resolve(),
        shape=given.shape,
        backend=given.backend,
        threads=given.threads,
        repeats=given.repeats,
        scale=given.scale,
    )
    failed = [] if given.report_only else _run(Bench(options), names, given.resume)
    _report(options, given.out or options.work / "report", draw=not given.no_plots)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(bench: Bench, names: Sequence[str], resume: bool) -> list[str]:
    """Run sections one after the other; the names of those that failed."""
    finished = read_results(bench.results) if resume else {}
    failed = []
    for name in names:
        if name in finished and finished[name].complete:
            logger.info("%s: complete already", name)
            continue
        logger.info("%s", name)
        started = time.monotonic()
        run: Callable[[Bench, Recorder], None] = import_module(f"benchmarks.sections.{name}").run
        record = bench.record(name)
        try:
            run(bench, record)
        except Exception:
            # The other sections are worth having all the same.
            logger.exception("%s failed", name)
            failed.append(name)
        else:
            record.finish()
        logger.info("%s took %.0f s", name, time.monotonic() - started)
    return failed


def _report(options: Options, out: Path, draw: bool) -> None:
    results = read_results(options.work / "results")
    ordered = {name: results[name] for name in SECTIONS if name in results}
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(report(ordered), encoding="utf-8")
    for result in ordered.values():
        result.save(out / "samples")
    if draw:
        from benchmarks.plots import draw as draw_plots

        draw_plots(ordered, out)
    print(f"\n{target_table(ordered)}\n\nreport, samples and plots: {out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--only", help=f"sections, of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each case (5)")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/bench"),
        help="folder for models, logs and results (build/bench)",
    )
    parser.add_argument("--out", type=Path, help="folder for the report (WORK/report)")
    parser.add_argument("--shape", default="v1", help="model shape, as bitskip synth has it (v1)")
    parser.add_argument("--backend", default="auto", help="our backend (auto)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every system (2)")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="factor of all token counts, for trying the harness out (1)",
    )
    parser.add_argument("--resume", action="store_true", help="skip sections that are complete")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    parser.add_argument("--no-plots", action="store_true", help="tables only")
    return parser


if __name__ == "__main__":
    sys.exit(main())

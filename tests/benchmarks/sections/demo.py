"""The demo model through the server: real text, with the acceptance that it really has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.bench import Bench, Contender, Recorder, Sample
from benchmarks.launch import launch_bitskip
from benchmarks.serving import BitSkipDialect, Server, decode_rate

PROMPTS = (
    "Once upon a time",
    "The little dog was happy because",
    "One day, a girl named Lily",
    "Tom and his mom went to the park.",
)
TOKENS = 320
STREAMS = (1, 4)


def run(bench: Bench, record: Recorder) -> None:
    """Alternate both backends, plain and drafting as the server does by itself."""
    with ExitStack() as stack:
        servers = {
            backend: stack.enter_context(launch_bitskip(bench, None, backend=backend))
            for backend in ("cpu", "reference")
        }
        for server in servers.values():
            server.wait_for_stream(BitSkipDialect(False), PROMPTS[0], 4)
        for count in STREAMS:
            record.alternate(
                [
                    Contender(
                        f"bitskip, {backend}",
                        "tok/s",
                        server,
                        _stream(server, speculative, count, bench.options.tokens(TOKENS)),
                        {"streams": count, "mode": "auto" if speculative else "plain"},
                    )
                    for backend, server in servers.items()
                    for speculative in (False, True)
                ]
            )


def _stream(server: Server, speculative: bool, count: int, tokens: int) -> Callable[[int], Sample]:
    dialect = BitSkipDialect(speculative)

    def measure(repeat: int) -> Sample:
        prompts = [PROMPTS[(repeat + index) % len(PROMPTS)] for index in range(count)]
        rate, acceptance = decode_rate(server.streams(dialect, prompts, tokens), dialect)
        return Sample(rate, {"acceptance": acceptance})

    return measure

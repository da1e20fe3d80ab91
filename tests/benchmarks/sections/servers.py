"""Whole servers over HTTP, with and without drafts, at an agreement of 85 %.

llama.cpp's server drafts with a separate model: our first layers and head, exported by
themselves. Each server runs alone in its process with its own defaults, and is asked for token
ids, so that no tokenizer is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.bench import Bench, Contender, Recorder, Sample
from benchmarks.launch import launch_bitskip, launch_llama
from benchmarks.prompts import random_prompts
from benchmarks.serving import BitSkipDialect, Dialect, LlamaDialect, Server, decode_rate

AGREEMENT = 0.85
PROMPT_TOKENS = 16
TOKENS = 128
STREAMS = (1, 4)
LLAMA_DRAFTS = (1, 2, 3)
"""Drafts per round; 3 is llama.cpp's default."""


def run(bench: Bench, record: Recorder) -> None:
    """Alternate both servers, plain and drafting."""
    models = bench.models
    vocab_size = models.config().vocab_size
    with ExitStack() as stack:
        ours = stack.enter_context(launch_bitskip(bench, models.synthetic(AGREEMENT)))
        gguf = models.gguf(AGREEMENT)
        llama = stack.enter_context(launch_llama(bench, gguf))
        setups: list[tuple[str, str, Server, Dialect]] = [
            ("bitskip", "plain", ours, BitSkipDialect(False)),
            ("bitskip", "auto", ours, BitSkipDialect({"method": "early_exit"})),
            ("llama.cpp", "plain", llama, LlamaDialect()),
        ]
        for num_drafts in LLAMA_DRAFTS:
            draft = models.gguf(AGREEMENT, draft=True)
            server = stack.enter_context(launch_llama(bench, gguf, draft, num_drafts))
            setups.append(("llama.cpp", str(num_drafts), server, LlamaDialect()))
        for _, _, server, dialect in setups:
            server.wait_for_stream(dialect, [1, 2, 3], 4)
        for count in STREAMS:
            record.alternate(
                [
                    Contender(
                        system,
                        "tok/s",
                        server,
                        _stream(server, dialect, count, bench.options.tokens(TOKENS), vocab_size),
                        {"streams": count, "mode": mode},
                    )
                    for system, mode, server, dialect in setups
                ]
            )


def _stream(
    server: Server, dialect: Dialect, count: int, tokens: int, vocab_size: int
) -> Callable[[int], Sample]:
    def measure(repeat: int) -> Sample:
        prompts = random_prompts(count, PROMPT_TOKENS, vocab_size, seed=repeat + 1)
        rate, acceptance = decode_rate(server.streams(dialect, prompts, tokens), dialect)
        return Sample(rate, {"acceptance": acceptance})

    return measure

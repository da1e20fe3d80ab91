"""llama.cpp through llama-cpp-python's low-level interface, one `llama_decode` per step.

The high-level class decodes one sequence; here all sequences of a batch go into each call, which
is the best that the library can do. The next tokens are picked by numpy's argmax, which is
quicker than llama.cpp's own greedy sampler.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

from benchmarks.workers.loop import serve

MAX_BATCH = 512


class LlamaWorker:
    """One loaded GGUF model, with a context of room for several sequences."""

    def load(self, model: str, threads: int, context: int, max_sequences: int) -> dict[str, Any]:
        """Load with llama.cpp's own defaults, but for threads and sizes."""
        llama_cpp.llama_backend_init()
        self._model: Any = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context * max_sequences
        params.n_seq_max = max_sequences
        params.n_batch = params.n_ubatch = MAX_BATCH
        params.n_threads = params.n_threads_batch = threads
        self._context: Any = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError(f"llama.cpp cannot make a context for {model}")
        self._memory: Any = llama_cpp.llama_get_memory(self._context)
        vocab: Any = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch = llama_cpp.llama_batch_init(MAX_BATCH, 0, 1)
        return {
            "system": llama_cpp.llama_print_system_info().decode(),
            "model_bytes": llama_cpp.llama_model_size(self._model),
        }

    def prefill(self, prompt: Sequence[int]) -> dict[str, float]:
        """Seconds from a prompt to its first token."""
        llama_cpp.llama_memory_clear(self._memory, True)
        started = time.perf_counter()
        self._run([(token, position, 0) for position, token in enumerate(prompt)], [-1])
        return {"seconds": time.perf_counter() - started}

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
        """Decode `tokens` tokens for every prompt, all of them in each call."""
        llama_cpp.llama_memory_clear(self._memory, True)
        latest = []
        for sequence, prompt in enumerate(prompts):
            rows = [(token, position, sequence) for position, token in enumerate(prompt)]
            latest += self._run(rows, [-1])
        first_tokens = [latest[0]]
        started = time.perf_counter()
        for step in range(tokens):
            rows = [
                (token, len(prompts[sequence]) + step, sequence)
                for sequence, token in enumerate(latest)
            ]
            latest = self._run(rows, range(len(rows)))
            first_tokens.append(latest[0])
        elapsed = time.perf_counter() - started
        return {
            "tokens_per_s": tokens * len(prompts) / elapsed,
            "seconds": elapsed,
            "token_ids": first_tokens,
        }

    def _run(self, rows: Sequence[tuple[int, int, int]], wanted: Sequence[int]) -> list[int]:
        """Decode (token, position, sequence) rows; the greedy tokens of those wanted."""
        asked = {index % len(rows) for index in wanted}
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = index in asked
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        return [self._argmax(index) for index in wanted]

    def _argmax(self, index: int) -> int:
        logits: Any = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())


if __name__ == "__main__":
    serve(LlamaWorker())

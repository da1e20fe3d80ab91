"""Ourselves, in process: the engine's core, stepped by hand so that phases can be told apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.workers.loop import serve
from engine.build import join_parts, load_model
from engine.config import EngineConfig
from engine.request import Request
from engine.rounds import new_controller
from engine.types import DraftMethod, SamplingParams, SpeculativeParams


class TimedBackend:
    """A backend that adds up the time spent in its methods; everything else passes through."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._backend, name)
        if not callable(attribute):
            return attribute
        timed = self._timed(attribute)
        # Found at once the next time: the measurement itself should cost little.
        self.__dict__[name] = timed
        return timed

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return call


class EngineWorker:
    """One loaded model. Prompts are token ids; decoding is greedy and never ends early."""

    def __init__(self) -> None:
        self._num_requests = 0

    def load(
        self, model: str, backend: str, threads: int, draft_exit: int, timed: bool = False
    ) -> dict[str, Any]:
        """Load a checkpoint directory; `timed` watches the backend's share of each round."""
        config = EngineConfig(draft_exit_layer=draft_exit, enable_prefix_caching=False)
        loaded = load_model(Path(model), config, backend, threads)
        self._timed = TimedBackend(loaded.backend) if timed else None
        if self._timed is not None:
            loaded = replace(loaded, backend=self._timed)  # pyright: ignore[reportArgumentType]
        parts = join_parts(loaded, config)
        self._core, self._intake = parts.core, parts.intake
        # `auto` learns from its own rounds, as in a server: not from those of fixed lengths.
        self._auto, self._others = parts.core.rounds.controller, new_controller(parts.backend)
        self._draft_exit = draft_exit
        return {"backend": parts.backend.name, "layers": loaded.config.num_layers}

    def prefill(self, prompt: Sequence[int]) -> dict[str, float]:
        """Seconds from a prompt's arrival to its first token."""
        started = time.perf_counter()
        self._add([prompt], 1, False)
        while self._core.has_work:
            self._core.step()
        return {"seconds": time.perf_counter() - started}

    def decode(
        self, prompts: Sequence[Sequence[int]], tokens: int, mode: str | int
    ) -> dict[str, Any]:
        """Decode until `tokens` per prompt are delivered, whichever sequences got them.

        No sequence ends before that, so all rounds that are timed have all sequences in them.
        `mode` is "plain", a fixed number of drafts, or "auto".
        """
        self._core.rounds.controller = self._auto if mode == "auto" else self._others
        requests = self._add(prompts, None, mode)
        while not all(request.num_generated for request in requests):
            self._core.step()
        rounds: list[tuple[float, float]] = []
        delivered = drafted = accepted = 0
        started = time.perf_counter()
        while delivered < tokens * len(prompts):
            seconds, in_backend, stats = self._step()
            rounds.append((seconds, seconds - in_backend))
            delivered += sum(stats.generated.values())
            drafted += sum(draft.num_draft_tokens for draft in stats.drafts)
            accepted += sum(draft.num_accepted_tokens for draft in stats.drafts)
        elapsed = time.perf_counter() - started
        first_tokens = requests[0].tokens[requests[0].num_prompt :]
        self._abort(requests)
        return {
            "tokens_per_s": delivered / elapsed,
            "seconds": elapsed,
            "tokens": delivered,
            "rounds": len(rounds),
            "drafted": drafted,
            "acceptance": accepted / drafted if drafted else None,
            "outside_ms": 1e3 * statistics.median(outside for _, outside in rounds),
            "token_ids": first_tokens,
        }

    def _step(self) -> tuple[float, float, Any]:
        """One round: its seconds, those of them in the backend (0 unless timed), its counts."""
        before = self._timed.seconds if self._timed else 0.0
        started = time.perf_counter()
        result = self._core.step()
        seconds = time.perf_counter() - started
        return seconds, (self._timed.seconds if self._timed else 0.0) - before, result.stats

    def _add(
        self, prompts: Sequence[Sequence[int]], max_tokens: int | None, mode: str | int | bool
    ) -> list[Request]:
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=True,
            speculative=self._speculation(mode),
        )
        added: list[Request] = []
        for prompt in prompts:
            self._num_requests += 1
            added += self._intake.make_requests(str(self._num_requests), list(prompt), params)
        self._core.add(added)
        return added

    def _speculation(self, mode: str | int | bool) -> SpeculativeParams:
        if mode is False or mode == "plain":
            return SpeculativeParams(enabled=False)
        # By early exit alone: random models loop, and n-grams would live off that.
        return SpeculativeParams(
            method=DraftMethod.EARLY_EXIT,
            exit_layer=self._draft_exit,
            num_speculations=None if mode == "auto" else int(mode),
        )

    def _abort(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._core.abort(request.request_id)
        while self._core.has_work:
            self._core.step()


if __name__ == "__main__":
    serve(EngineWorker())

"""How fast a model's exits are, alone and as drafters, as the engine serves them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engine.build import LoadedModel, join_parts
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.evaluation.perplexity import Progress
from engine.evaluation.timing import Clock, TimedBackend, TimeSplit
from engine.request import Request
from engine.types import DraftMethod, SamplingParams, SpeculativeParams

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to decode."""

    exit_layer: int
    """Layers that answer."""
    batch_size: int
    """Sequences at once."""
    draft_exit_layer: int | None = None
    """Layers that draft; None: nothing is drafted."""
    num_speculations: int | Literal["auto"] | None = None
    """Drafts per round; auto: as many as the engine thinks will pay."""

    @property
    def speculative(self) -> SpeculativeParams:
        """The same, as a request says it. Only exits draft, never n-grams."""
        if self.draft_exit_layer is None:
            return SpeculativeParams(enabled=False)
        return SpeculativeParams(
            method=DraftMethod.EARLY_EXIT,
            exit_layer=self.draft_exit_layer,
            num_speculations=None if self.num_speculations == "auto" else self.num_speculations,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a setting. Rates are of all sequences together."""

    tokens_per_s: float
    """Decoding, from when every sequence had its first token."""
    first_token_s: float
    """From the arrival of all prompts at once to a sequence's first token, on average."""
    prefill_s: float
    """From then to the last sequence's first token."""
    num_tokens: int
    """Delivered while decoding."""
    num_rounds: int
    """Rounds of single sequences in which drafts were verified."""
    num_drafted: int
    num_accepted: int
    split: TimeSplit
    """Of decoding."""
    completions: tuple[tuple[int, ...], ...]
    """Each sequence's tokens."""


class SpeedBench:
    """One engine over a loaded model, on which settings are run one after the other.

    All settings share it, as the requests of a server would. `clock` is in seconds. Raises
    `ConfigError` where the context leaves nothing to measure.
    """

    def __init__(
        self, model: LoadedModel, max_batch_size: int, clock: Clock = time.perf_counter
    ) -> None:
        self._clock = clock
        self._backend = TimedBackend(model.backend, clock)
        context = model.config.max_position_embeddings
        config = EngineConfig(
            max_num_seqs=max_batch_size,
            kv_cache_tokens=max_batch_size * context,
            # Prompts come again, and their first tokens are timed.
            enable_prefix_caching=False,
        )
        parts = join_parts(replace(model, backend=self._backend.as_backend()), config)
        self._core, self._intake = parts.core, parts.intake
        self._num_requests = 0

    def run(self, setting: Setting, prompts: Prompts, num_new_tokens: int) -> Sample:
        """Decode greedily, past ends of text, until `num_new_tokens` per prompt are delivered.

        They count whichever sequences got them. It stops early when a sequence reaches the end of
        the context, so that in every round that is timed all sequences take part.
        """
        requests = self._add(setting, prompts)
        waits_s = self._prefill(requests)
        self._backend.take_calls()
        splits: list[TimeSplit] = []
        num_tokens = num_rounds = num_drafted = num_accepted = 0
        started = self._clock()
        goal = num_new_tokens * len(prompts)
        while num_tokens < goal and all(each.finish_reason is None for each in requests):
            began = self._clock()
            stats = self._core.step().stats
            duration = self._clock() - began
            splits.append(TimeSplit.of_round(self._backend.take_calls(), stats.passes, duration))
            num_tokens += sum(stats.generated.values())
            num_rounds += len(stats.drafts)
            num_drafted += sum(each.num_draft_tokens for each in stats.drafts)
            num_accepted += sum(each.num_accepted_tokens for each in stats.drafts)
        elapsed = self._clock() - started
        self._abort(requests)
        if not num_tokens or elapsed <= 0:
            raise ConfigError("the model's context is too short to measure its speed")
        return Sample(
            tokens_per_s=num_tokens / elapsed,
            first_token_s=statistics.fmean(waits_s),
            prefill_s=waits_s[-1],
            num_tokens=num_tokens,
            num_rounds=num_rounds,
            num_drafted=num_drafted,
            num_accepted=num_accepted,
            split=TimeSplit.sum(splits),
            completions=tuple(tuple(each.tokens[each.num_prompt :]) for each in requests),
        )

    def _add(self, setting: Setting, prompts: Prompts) -> list[Request]:
        params = SamplingParams(
            max_tokens=None,
            temperature=0.0,
            ignore_eos=True,
            exit_layer=setting.exit_layer,
            speculative=setting.speculative,
        )
        requests: list[Request] = []
        for prompt in prompts:
            self._num_requests += 1
            requests += self._intake.make_requests(str(self._num_requests), prompt, params)
        return requests

    def _prefill(self, requests: Sequence[Request]) -> list[float]:
        """Until every sequence has a token; the seconds that each waited for it, ascending."""
        started = self._clock()
        self._core.add(requests)
        waits: list[float] = []
        while len(waits) < len(requests):
            self._core.step()
            waited = self._clock() - started
            num_begun = sum(request.num_generated > 0 for request in requests)
            waits += [waited] * (num_begun - len(waits))
        return waits

    def _abort(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._core.abort(request.request_id)
        while self._core.has_work:
            self._core.step()


def measure_speeds(
    bench: SpeedBench,
    settings: Sequence[Setting],
    prompts: Prompts,
    *,
    num_new_tokens: int,
    num_repeats: int,
    progress: Progress = lambda done, total: None,
) -> dict[Setting, list[Sample]]:
    """`num_repeats` samples of each setting, after one of each that is thrown away.

    Settings take turns, in another order each time, so that a machine that slows down slows all
    of them. In one repeat, settings of the same batch size get the same prompts. Raises
    `ConfigError` as `SpeedBench` does.
    """
    samples: dict[Setting, list[Sample]] = {setting: [] for setting in settings}
    total = len(settings) * (1 + num_repeats)
    done = 0
    for repeat in range(1 + num_repeats):
        for setting in _shuffled(settings, repeat):
            sample = bench.run(setting, _batch(prompts, setting.batch_size, repeat), num_new_tokens)
            if repeat:
                samples[setting].append(sample)
            done += 1
            progress(done, total)
    return samples


def _shuffled(settings: Sequence[Setting], repeat: int) -> list[Setting]:
    order = list(settings)
    random.Random(repeat).shuffle(order)
    return order


def _batch(prompts: Prompts, batch_size: int, repeat: int) -> Prompts:
    """The next so many prompts, from the start again where they end."""
    first = repeat * batch_size
    return [prompts[(first + index) % len(prompts)] for index in range(batch_size)]


def all_settings(
    exits: Sequence[int],
    num_layers: int,
    batch_sizes: Sequence[int],
    num_speculations: Sequence[int | Literal["auto"]],
) -> Iterator[Setting]:
    """Each exit answering alone, and each below full depth drafting for it, at each batch size."""
    for batch_size in batch_sizes:
        for exit_layer in exits:
            yield Setting(exit_layer, batch_size)
        for exit_layer in exits:
            if exit_layer < num_layers:
                for count in num_speculations:
                    yield Setting(num_layers, batch_size, exit_layer, count)


def median_speedup(samples: Sequence[Sample], baseline: Sequence[Sample]) -> float:
    """Median over the repeats of how many times as fast one is as the other."""
    pairs = zip(samples, baseline, strict=True)
    return statistics.median(one.tokens_per_s / other.tokens_per_s for one, other in pairs)


def count_changed_tokens(samples: dict[Setting, list[Sample]], num_layers: int) -> tuple[int, int]:
    """(tokens that drafting changed, tokens compared): lossless drafting changes none."""
    changed = compared = 0
    for setting, drafted in samples.items():
        if setting.draft_exit_layer is None:
            continue
        plain = samples[Setting(num_layers, setting.batch_size)]
        for one, other in zip(drafted, plain, strict=True):
            for ours, theirs in zip(one.completions, other.completions, strict=True):
                length = min(len(ours), len(theirs))
                compared += length
                changed += sum(a != b for a, b in zip(ours[:length], theirs[:length], strict=True))
    return changed, compared

"""A stand-in for `engine.async_engine.AsyncEngine` that answers from a script.

It obeys the interface (validation, streams that end, abort, drain, death) on the event loop
alone, imports no torch, and remembers what it was asked. A token is a byte, 256 is EOS, so
characters beyond ASCII span tokens as they do in byte-level BPE.
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from engine.config import EngineConfig, ModelConfig
from engine.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineDrainingError,
    EngineUnavailableError,
    InvalidRequestError,
)
from engine.metrics import DraftStats, FinishedStats, IntervalStats, PassStats, StepStats
from engine.types import (
    ChoiceMetrics,
    ChoiceOutput,
    FinishReason,
    SamplingParams,
    SpeculationMetrics,
    TokenLogprobs,
    TokenOutput,
    TokenSource,
)

EOS = 256
NUM_LAYERS = 8
DEFAULT_TEXT = "Grüße für 5 €, 日本 and more."


class ByteTokenizer:
    """UTF-8 bytes as tokens, and EOS, which comes first too if `adds_bos`."""

    vocab_size = 257
    eos_token_id = EOS
    special_tokens: Mapping[str, str] = MappingProxyType({"eos_token": "<|endoftext|>"})
    chat_template: str | None = None
    tokenizer_class: str | None = "ByteTokenizer"

    def __init__(self, chat_template: str | None = None, adds_bos: bool = False) -> None:
        self.adds_bos = adds_bos
        self.special_tokens = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        self.chat_template = chat_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            return [EOS] * (self.adds_bos and add_special_tokens) + list(text.encode())
        except UnicodeEncodeError:
            raise InvalidRequestError("text holds a lone surrogate") from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        kept = [token for token in ids if token != EOS or not skip_special_tokens]
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"<|endoftext|>" if token_id == EOS else bytes([token_id])

    first_token_bytes = token_bytes

    def token_text(self, token_id: int) -> str:
        if 0x80 <= token_id < EOS:
            return f"bytes:\\x{token_id:02x}"
        return self.token_bytes(token_id).decode()


class FakeStream:
    """The outputs of one request."""

    def __init__(self, request_id: str, num_choices: int, on_abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self.num_open = num_choices
        self._on_abort = on_abort
        self._queue: asyncio.Queue[ChoiceOutput] = asyncio.Queue()

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> ChoiceOutput:
        if self.num_open == 0:
            raise StopAsyncIteration
        output = await self._queue.get()
        if output.finish_reason is not None:
            self.num_open -= 1
        return output

    def abort(self) -> None:
        self._on_abort(self.request_id)

    def put(self, output: ChoiceOutput) -> None:
        self._queue.put_nowait(output)


@dataclass
class Running:
    """One request that has not ended."""

    stream: FakeStream
    params: SamplingParams
    prompt: tuple[int, ...]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    open_indexes: set[int] = field(default_factory=set)


class FakeAsyncEngine:
    """Answers every choice i with `text`, preceded by "i:" beyond the first.

    `hold_after` tokens, every choice waits until `release` (or its end) comes; None: no wait.
    `step_sizes` are the tokens of the successive outputs, repeated. At most `num_places` choices
    run; the others wait, and the engine says so, until one of those has ended.
    """

    def __init__(
        self,
        text: str = DEFAULT_TEXT,
        *,
        hold_after: int | None = None,
        step_sizes: Sequence[int] = (1, 3, 2),
        start_error: Exception | None = None,
        num_places: int = 256,
    ) -> None:
        self.model_config = ModelConfig(
            vocab_size=257,
            hidden_size=64,
            num_layers=NUM_LAYERS,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            intermediate_size=128,
            max_position_embeddings=512,
            eos_token_ids=(EOS,),
        )
        self.config = EngineConfig(max_num_seqs=num_places).resolve(self.model_config)
        self.tokenizer = ByteTokenizer()
        self.backend_name = "fake"
        self.backend_description = "by heart"
        self.head_dtype = "int8"
        self.linear_dtype = "ternary"
        self.kv_dtype = "fp16"
        self.status = "loading"
        self.text = text
        self.hold_after = hold_after
        self.step_sizes = tuple(step_sizes)
        self.start_error = start_error
        self.submitted: list[tuple[str, tuple[int, ...], SamplingParams]] = []
        self.aborted: list[str] = []
        self.stopped = False
        self._listeners: list[Callable[[StepStats], None]] = []
        self._running: dict[str, Running] = {}
        self._released = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._places = asyncio.Semaphore(num_places)
        self._num_waiting = 0

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error
        self.status = "ready"

    def add_stats_listener(self, listener: Callable[[StepStats], None]) -> None:
        self._listeners.append(listener)

    def submit(
        self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> FakeStream:
        if self.status != "ready":
            errors = {"draining": EngineDrainingError, "dead": EngineDeadError}
            raise errors.get(self.status, EngineUnavailableError)(f"the engine is {self.status}")
        params.validate(self.model_config.vocab_size, NUM_LAYERS)
        limit = self.config.max_model_len or 0
        if len(prompt_token_ids) + (params.max_tokens or 0) > limit:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens.", param="prompt"
            )
        prompt = tuple(prompt_token_ids)
        self.submitted.append((request_id, prompt, params))
        running = Running(FakeStream(request_id, params.n, self._abort), params, prompt)
        self._running[request_id] = running
        self._idle.clear()
        for index in range(params.n):
            running.open_indexes.add(index)
            running.tasks.append(asyncio.create_task(self._run(running, index)))
        return running.stream

    def release(self) -> None:
        """Let choices that wait at `hold_after` go on."""
        self._released.set()

    def fail(self, message: str, code: str) -> None:
        """End whatever runs with an error."""
        for running in list(self._running.values()):
            for task in running.tasks:
                task.cancel()
            for index in sorted(running.open_indexes):
                self._finish(running, index, (), FinishReason.ERROR, error=message, code=code)

    def die(self) -> None:
        """Crash."""
        self.status = "dead"
        self.fail("the engine has stopped", EngineDeadError.code)

    async def drain(self, timeout_s: float) -> None:
        self.status = "draining"
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            self.fail("the server is shutting down", EngineDrainingError.code)

    async def stop(self) -> None:
        self.stopped = True
        self.fail("stopped", EngineDrainingError.code)

    def _abort(self, request_id: str) -> None:
        running = self._running.get(request_id)
        if running is None:
            return
        self.aborted.append(request_id)
        for task in running.tasks:
            task.cancel()
        for index in sorted(running.open_indexes):
            self._finish(running, index, (), FinishReason.ABORT)

    async def _run(self, running: Running, index: int) -> None:
        self._num_waiting += 1
        self._tell_listeners(StepStats())
        try:
            await self._places.acquire()
        finally:
            self._num_waiting -= 1
            self._tell_listeners(StepStats(left_queue=[running.stream.request_id]))
        try:
            await self._generate(running, index)
        finally:
            self._places.release()

    def _tell_listeners(self, stats: StepStats) -> None:
        stats.num_running, stats.num_waiting = len(self._running), self._num_waiting
        for listener in self._listeners:
            listener(stats)

    async def _generate(self, running: Running, index: int) -> None:
        tokens, reason, stop_reason = self._plan(running.params, index)
        sizes = itertools.cycle(self.step_sizes)
        scores = self._prompt_logprobs(running)
        position = 0
        while True:
            await asyncio.sleep(0)
            if self.hold_after is not None and position >= self.hold_after:
                await self._released.wait()
            end = position + next(sizes)
            if self.hold_after is not None and position < self.hold_after:
                end = min(end, self.hold_after)
            if end >= len(tokens):
                break
            step = tuple(tokens[position:end])
            running.stream.put(
                ChoiceOutput(running.stream.request_id, index, step, prompt_logprobs=scores)
            )
            scores = None
            position = end
        rest = tuple(tokens[position:])
        self._finish(running, index, rest, reason, stop_reason=stop_reason, scores=scores)

    def _plan(
        self, params: SamplingParams, index: int
    ) -> tuple[list[TokenOutput], FinishReason, str | int | None]:
        """The tokens of a choice, and why it ends."""
        text = self.text if index == 0 else f"{index}:{self.text}"
        ids: Iterator[int] = iter([*text.encode(), EOS])
        if params.ignore_eos:
            ids = itertools.cycle(text.encode())
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        tokens: list[TokenOutput] = []
        whole = ""
        limit = 10_000 if params.max_tokens is None else params.max_tokens
        sources = itertools.cycle(TokenSource)
        for token_id in itertools.islice(ids, limit):
            part = "" if token_id == EOS else decoder.decode(bytes([token_id]))
            whole += part
            tokens.append(
                TokenOutput(token_id, part, next(sources), _logprobs(token_id, params.logprobs))
            )
            if token_id == EOS:
                return tokens, FinishReason.STOP, None
            if token_id in params.stop_token_ids:
                return tokens, FinishReason.STOP, token_id
            for stop in params.stop:
                if stop in whole:
                    kept = whole.index(stop)
                    kept += len(stop) if params.include_stop_str_in_output else 0
                    return list(_cut(tokens, kept)), FinishReason.STOP, stop
        return tokens, FinishReason.LENGTH, None

    def _prompt_logprobs(self, running: Running) -> tuple[TokenLogprobs | None, ...] | None:
        count = running.params.prompt_logprobs
        if count is None:
            return None
        return (None, *(_logprobs(token_id, count) for token_id in running.prompt[1:]))

    def _finish(
        self,
        running: Running,
        index: int,
        tokens: tuple[TokenOutput, ...],
        reason: FinishReason,
        *,
        stop_reason: str | int | None = None,
        scores: tuple[TokenLogprobs | None, ...] | None = None,
        error: str | None = None,
        code: str | None = None,
    ) -> None:
        params = running.params
        output = ChoiceOutput(
            running.stream.request_id,
            index,
            tokens,
            reason,
            stop_reason,
            metrics=ChoiceMetrics(
                exit_layer=params.exit_layer or NUM_LAYERS,
                seed=(params.seed or 7) + index,
                num_prompt_tokens=len(running.prompt),
                num_cached_tokens=min(2, len(running.prompt) - 1),
                num_generated_tokens=len(tokens),
                queue_time_s=0.001,
                time_to_first_token_s=0.01,
                generation_time_s=0.5,
                mean_itl_s=0.02,
                speculation=SpeculationMetrics(2, 4, 10, 6, (4, 2)),
            ),
            prompt_logprobs=scores,
            error=error,
            error_code=code,
        )
        running.stream.put(output)
        running.open_indexes.discard(index)
        self._report(running, reason, len(tokens))
        if not running.open_indexes:
            self._running.pop(running.stream.request_id, None)
            if not self._running:
                self._idle.set()

    def _report(self, running: Running, reason: FinishReason, num_tokens: int) -> None:
        depth = running.params.exit_layer or NUM_LAYERS
        stats = StepStats(
            passes=[PassStats("draft", 2, 1, 0.001), PassStats("verify", depth, 4, 0.004)],
            drafts=[DraftStats(2, 3, 2)],
            intervals=[IntervalStats(depth, True, 0.03, 3)],
            finished=[
                FinishedStats(
                    exit_layer=depth,
                    speculative=True,
                    reason=reason,
                    num_prompt_tokens=len(running.prompt),
                    num_generated_tokens=num_tokens,
                    queue_s=0.001,
                    time_to_first_token_s=0.01,
                    prefill_s=0.009,
                    decode_s=None,
                    e2e_s=0.5,
                )
            ],
            num_prompt_tokens=len(running.prompt),
            num_prefix_queries=len(running.prompt),
            kv_usage_ratio=0.25,
        )
        stats.count_generated(depth, TokenSource.DRAFT)
        self._tell_listeners(stats)


def _logprobs(token_id: int, count: int | None) -> TokenLogprobs | None:
    """Made-up values: "a" is impossible, everything else follows from the id."""
    if count is None:
        return None
    logprob = float("-inf") if token_id == ord("a") else -1.0 - token_id / 512
    top = tuple((65 + i, -0.5 * i - 0.1) for i in range(count))
    return TokenLogprobs(token_id, logprob, top, rank=token_id + 1)


def _cut(tokens: list[TokenOutput], num_characters: int) -> Iterator[TokenOutput]:
    for token in tokens:
        kept = token.text[:num_characters]
        num_characters -= len(kept)
        yield TokenOutput(token.token_id, kept, token.source, token.logprobs)

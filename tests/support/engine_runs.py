"""Requests through the whole engine, driven by hand, and what they must be answered with.

An engine run depends on its inputs alone: the clock ticks once per reading, and seeds come
from a seeded generator.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.backends.protocol import Backend
from engine.config import EngineConfig, ModelConfig
from engine.core import Core, StepResult
from engine.intake import Intake
from engine.sampling.logprobs import token_logprobs
from engine.sampling.noise import choice_seed
from engine.sampling.sampler import SamplingState, sample
from engine.tokenizer import Tokenizer
from engine.types import (
    ChoiceMetrics,
    ChoiceOutput,
    FinishReason,
    SamplingParams,
    TokenLogprobs,
    TokenOutput,
)
from support.letters import text_so_far
from support.oracle import FromScratch, OracleResult, naive_completion

MAX_STEPS = 5_000
"""An engine that has not answered by then never will."""

TICK_S = 1e-3


@dataclass(frozen=True, slots=True)
class Model:
    """One model: how to get a backend that runs it, and its logits from scratch."""

    config: ModelConfig
    tokenizer: Tokenizer
    make_backend: Callable[[], Backend]
    scratch: FromScratch


@dataclass(frozen=True, slots=True)
class Submission:
    """A request, the step before which it is added, and perhaps one before which it is aborted."""

    prompt: tuple[int, ...]
    params: SamplingParams
    add_step: int = 0
    abort_step: int | None = None


@dataclass(slots=True)
class Answer:
    """All that one choice was answered with."""

    tokens: list[TokenOutput] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    metrics: ChoiceMetrics | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The delivered tokens."""
        return tuple(token.token_id for token in self.tokens)

    @property
    def text(self) -> str:
        """The delivered text."""
        return "".join(token.text for token in self.tokens)

    def collect(self, output: ChoiceOutput) -> None:
        """Take in one step's output."""
        assert self.finish_reason is None, "an output after the last"
        self.tokens += output.tokens
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "prompt logprobs twice"
            self.prompt_logprobs = output.prompt_logprobs
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        self.metrics = output.metrics


Answers = Mapping[tuple[int, int], Answer]
"""(submission, choice) → its answer."""


class EngineRun:
    """One engine over one backend, and the requests that go through it."""

    def __init__(self, model: Model, backend: Backend, config: EngineConfig, seed: int = 0) -> None:
        ticks = itertools.count()

        def clock() -> float:
            return TICK_S * next(ticks)

        self.model = model
        self.config = config.resolve(model.config)
        self.core = Core(backend, self.config, clock)
        rng = random.Random(seed)
        self._intake = Intake(model.config, self.config, model.tokenizer, rng, clock)

    def answer(
        self,
        submissions: Sequence[Submission],
        observe: Callable[[StepResult], None] = lambda _: None,
    ) -> Answers:
        """Add, abort and step until everything is answered; then check that nothing leaked."""
        answers: dict[tuple[int, int], Answer] = {}
        waiting = sorted(range(len(submissions)), key=lambda index: submissions[index].add_step)
        for step in range(MAX_STEPS):
            while waiting and submissions[waiting[0]].add_step <= step:
                index = waiting.pop(0)
                self._add(index, submissions[index], answers)
            for index, submission in enumerate(submissions):
                if submission.abort_step == step:
                    self.core.abort(str(index))
            if self.core.has_work:
                result = self.core.step()
                observe(result)
                for output in result.outputs:
                    answers[int(output.request_id), output.index].collect(output)
            elif not waiting:
                break
        else:
            raise AssertionError(f"not answered within {MAX_STEPS} steps")
        assert self.core.cache.usage_ratio == 0.0, "somebody left without giving blocks back"
        self.core.cache.check_integrity()
        return answers

    def _add(
        self, index: int, submission: Submission, answers: dict[tuple[int, int], Answer]
    ) -> None:
        requests = self._intake.make_requests(str(index), submission.prompt, submission.params)
        answers.update({(index, request.index): Answer() for request in requests})
        self.core.add(requests)


def expected_completion(
    model: Model, submission: Submission, seed: int, max_model_len: int
) -> OracleResult:
    """What a choice with this seed must be answered with."""
    return naive_completion(
        model.scratch,
        submission.prompt,
        submission.params,
        seed,
        sample=sample,
        new_state=SamplingState,
        exit_layer=submission.params.exit_layer or model.config.num_layers,
        eos_token_ids=model.config.eos_token_ids,
        max_model_len=max_model_len,
        text_of=lambda tokens: text_so_far(model.tokenizer, tokens),
    )


def differences(
    run: EngineRun, submissions: Sequence[Submission], answers: Answers
) -> Iterable[str]:
    """Whatever in the answers is not as the oracle says, bit for bit; nothing, if all is well."""
    limit = run.config.max_model_len
    assert limit is not None
    for (number, index), answer in answers.items():
        submission = submissions[number]
        assert answer.metrics is not None, f"choice {number}.{index} was never finished"
        seed = answer.metrics.seed
        if submission.params.seed is not None:
            asked_for = choice_seed(submission.params.seed, index)
            if seed != asked_for:
                yield f"choice {number}.{index}: seed {seed}, not {asked_for}"
        oracle = expected_completion(run.model, submission, seed, limit)
        pairs = _comparable(run.model, submission, answer, oracle)
        for name, (got, wanted) in pairs.items():
            if got != wanted:
                yield f"choice {number}.{index}: {name} {got!r}, not {wanted!r}; {submission}"


def _comparable(
    model: Model, submission: Submission, answer: Answer, oracle: OracleResult
) -> dict[str, tuple[object, object]]:
    """What there is to compare: name → (the engine's, the oracle's)."""
    params = submission.params
    count = len(answer.tokens)
    scores = [token.logprobs for token in answer.tokens]
    wanted: list[TokenLogprobs | None] = [None] * count
    if params.logprobs is not None:
        wanted = [
            token_logprobs(logits, token, params.logprobs)
            for logits, token in zip(oracle.logits[:count], oracle.tokens, strict=False)
        ]
    pairs: dict[str, tuple[object, object]] = {"logprobs": (scores, wanted)}
    if params.allowed_token_ids is not None:
        pairs["forbidden tokens"] = (set(answer.token_ids) - {*params.allowed_token_ids}, set())
    if answer.finish_reason is FinishReason.ABORT:
        # It went as far as it went.
        return pairs | {"aborted tokens": (answer.token_ids, oracle.tokens[:count])}
    return pairs | {
        "tokens": (answer.token_ids, oracle.tokens),
        "finish reason": (answer.finish_reason, oracle.finish_reason),
        "stop reason": (answer.stop_reason, oracle.stop_reason),
        "text": (answer.text, _text(model, params, oracle)),
        "prompt logprobs": (answer.prompt_logprobs, _prompt_logprobs(model, submission)),
    }


def _text(model: Model, params: SamplingParams, oracle: OracleResult) -> str:
    if not isinstance(oracle.stop_reason, str):
        return model.tokenizer.decode(oracle.tokens)
    held_off = len(text_so_far(model.tokenizer, oracle.tokens[: max(0, params.min_tokens - 1)]))
    text, stop = text_so_far(model.tokenizer, oracle.tokens), oracle.stop_reason
    start = text.index(stop, max(0, held_off + 1 - len(stop)))
    return text[: start + len(stop) if params.include_stop_str_in_output else start]


def _prompt_logprobs(
    model: Model, submission: Submission
) -> tuple[TokenLogprobs | None, ...] | None:
    params, prompt = submission.params, submission.prompt
    if params.prompt_logprobs is None:
        return None
    depth = params.exit_layer or model.config.num_layers
    return (
        None,
        *(
            token_logprobs(
                model.scratch.logits(prompt[:end], depth), prompt[end], params.prompt_logprobs
            )
            for end in range(1, len(prompt))
        ),
    )

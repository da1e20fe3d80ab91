"""The engine without a server: `LLM(model).generate(prompts, params)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from engine.build import EngineParts, build_parts, demo_model_path
from engine.config import EngineConfig, ModelConfig
from engine.tokenizer import Tokenizer
from engine.types import (
    ChoiceMetrics,
    ChoiceOutput,
    FinishReason,
    SamplingParams,
    TokenLogprobs,
    TokenOutput,
)

Prompt = str | Sequence[int]


@dataclass(slots=True)
class Completion:
    """One finished choice."""

    index: int
    tokens: list[TokenOutput] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    metrics: ChoiceMetrics | None = None

    @property
    def text(self) -> str:
        """What was generated."""
        return "".join(token.text for token in self.tokens)

    @property
    def token_ids(self) -> list[int]:
        """Every generated token, EOS and the tokens of a cut stop string included."""
        return [token.token_id for token in self.tokens]


@dataclass(slots=True)
class Generation:
    """What one prompt brought."""

    prompt_token_ids: list[int]
    choices: list[Completion]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text


class LLM:
    """A loaded model that answers prompts in the calling thread.

    `model` is a checkpoint directory (None: the bundled demo). Use it as a context manager, or
    call `close`. Raises `CheckpointError`, `TokenizerError` or `ConfigError` when loading fails.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        config: EngineConfig | None = None,
        *,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None:
        path = demo_model_path() if model is None else Path(model)
        self._parts = build_parts(path, config, backend, threads)
        self._num_requests = 0

    @classmethod
    def from_parts(cls, parts: EngineParts) -> LLM:
        """Drive an engine that is joined already."""
        self = cls.__new__(cls)
        self._parts = parts
        self._num_requests = 0
        return self

    @property
    def model_config(self) -> ModelConfig:
        """Shape of the model."""
        return self._parts.intake.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._parts.intake.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Generation]:
        """Answer one or more prompts (texts, or lists of token ids), batched together.

        `params` is one for all, or one for each prompt. Raises `InvalidRequestError` before
        anything runs when one of them cannot be served.
        """
        prompt_ids = [self._encode(prompt) for prompt in _as_prompts(prompts)]
        if params is None:
            params = SamplingParams()
        if isinstance(params, SamplingParams):
            params = [params] * len(prompt_ids)
        if len(params) != len(prompt_ids):
            raise ValueError(f"{len(params)} params for {len(prompt_ids)} prompts")
        generations: dict[str, Generation] = {}
        batches = []
        for token_ids, each in zip(prompt_ids, params, strict=True):
            request_id = str(self._num_requests)
            self._num_requests += 1
            batches.append(self._parts.intake.make_requests(request_id, token_ids, each))
            generations[request_id] = Generation(
                token_ids, [Completion(index) for index in range(each.n)]
            )
        core = self._parts.core
        for batch in batches:
            core.add(batch)
        try:
            while core.has_work:
                for output in core.step().outputs:
                    _collect(generations[output.request_id], output)
        except BaseException:
            # Ctrl-C in mid-round: the next call must not find what is left of this one.
            for request_id in generations:
                core.abort(request_id)
            core.step()
            raise
        return list(generations.values())

    def close(self) -> None:
        """Release the backend."""
        self._parts.backend.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]  # pyright: ignore[reportReturnType]  (a list of ids is one prompt)
    return items  # pyright: ignore[reportReturnType]


def _collect(generation: Generation, output: ChoiceOutput) -> None:
    choice = generation.choices[output.index]
    choice.tokens += output.tokens
    if output.prompt_logprobs is not None:
        generation.prompt_logprobs = output.prompt_logprobs
    if output.finish_reason is not None:
        choice.finish_reason = output.finish_reason
        choice.stop_reason = output.stop_reason
        choice.metrics = output.metrics

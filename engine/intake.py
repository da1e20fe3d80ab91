"""From a prompt and its parameters to the choices that the core runs: checked, and expanded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.config import EngineConfig, ModelConfig
from engine.detokenizer import Detokenizer
from engine.errors import ContextLengthError, InvalidRequestError
from engine.request import Request
from engine.sampling.noise import choice_seed, draw_seed
from engine.sampling.sampler import SamplingState
from engine.speculative.drafting import resolve_policy
from engine.speculative.ngram import NgramIndex
from engine.tokenizer import Tokenizer
from engine.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Intake:
    """Makes requests for one model and engine configuration; safe to use beside the engine."""

    model: ModelConfig
    config: EngineConfig
    tokenizer: Tokenizer
    rng: random.Random
    clock: Callable[[], float]

    def make_requests(
        self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> list[Request]:
        """The `n` choices of one prompt.

        Raises `InvalidRequestError` or `ContextLengthError`, naming the field at fault.
        """
        params.validate(self.model.vocab_size, self.model.num_layers)
        self._check_prompt(prompt_token_ids)
        max_tokens = self._max_tokens(len(prompt_token_ids), params)
        exit_layer = params.exit_layer or self.model.num_layers
        policy = resolve_policy(params.speculative, self.config, exit_layer)
        seed = draw_seed(self.rng) if params.seed is None else params.seed
        requests: list[Request] = []
        for index in range(params.n):
            requests.append(
                Request(
                    request_id=request_id,
                    index=index,
                    prompt_token_ids=prompt_token_ids,
                    params=params,
                    exit_layer=exit_layer,
                    max_tokens=max_tokens,
                    eos_token_ids=self.model.eos_token_ids,
                    sampling=SamplingState(
                        params,
                        prompt_token_ids,
                        self.model.eos_token_ids,
                        choice_seed(seed, index),
                    ),
                    detokenizer=Detokenizer(
                        self.tokenizer,
                        params.stop,
                        params.include_stop_str_in_output,
                        params.skip_special_tokens,
                        prompt_token_ids,
                    ),
                    policy=policy,
                    ngrams=self._ngrams(prompt_token_ids) if policy.uses_ngrams else None,
                    arrival_s=self.clock(),
                    leader=requests[0] if requests else None,
                )
            )
        return requests

    def _ngrams(self, prompt_token_ids: Sequence[int]) -> NgramIndex:
        return NgramIndex(prompt_token_ids, self.config.ngram_min, self.config.ngram_max)

    def _check_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        if not prompt_token_ids:
            raise InvalidRequestError("prompt must hold at least one token", param="prompt")
        for token_id in prompt_token_ids:
            if not 0 <= token_id < self.model.vocab_size:
                raise InvalidRequestError(
                    f"prompt holds token {token_id}; the vocabulary has "
                    f"{self.model.vocab_size} tokens",
                    param="prompt",
                )

    def _max_tokens(self, num_prompt: int, params: SamplingParams) -> int:
        limit = self.config.max_model_len
        assert limit is not None, "a resolved configuration"
        if params.max_tokens is None:
            if num_prompt >= limit:
                raise ContextLengthError(
                    f"This model's maximum context length is {limit} tokens, and the prompt "
                    f"alone has {num_prompt}.",
                    param="prompt",
                )
            return limit - num_prompt
        if num_prompt + params.max_tokens > limit:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{num_prompt + params.max_tokens} tokens ({num_prompt} in the prompt, "
                f"{params.max_tokens} for the completion). Please reduce the length of the "
                "prompt or of the completion.",
                param="prompt" if num_prompt > limit else "max_tokens",
            )
        return params.max_tokens

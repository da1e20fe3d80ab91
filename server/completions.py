"""From a validated completion request to the engine, and from its outputs to the response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from engine.errors import BitSkipError, InvalidRequestError
from engine.types import (
    ChoiceOutput,
    DraftMethod,
    SamplingParams,
    SpeculativeParams,
)
from server.choices import ChoiceAssembler, ChoiceOptions, EchoedPrompt, UsageCounter
from server.context import ServerContext
from server.engine_api import OutputStream, Tokenizer
from server.errors import output_error
from server.protocol import CompletionRequest, GenerationRequest, Prompt

INLINE_PROMPT_SIZE = 4096
"""Characters and ids up to which prompts are prepared on the event loop itself: about 1 ms."""


def speculative_params(request: GenerationRequest) -> SpeculativeParams | None:
    """How to draft; None leaves it to the engine's own setting."""
    options = request.speculative
    if options is None:
        return None
    if isinstance(options, bool):
        return SpeculativeParams(enabled=options)
    return SpeculativeParams(
        method=DraftMethod(options.method),
        exit_layer=options.exit_layer,
        num_speculations=options.num_speculations,
    )


def sampling_params(
    request: GenerationRequest,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    """The engine's parameters of any request that generates; the engine checks their ranges."""
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=0 if request.top_k == -1 else request.top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=MappingProxyType(request.logit_bias or {}),
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        include_stop_str_in_output=request.include_stop_str_in_output,
        ignore_eos=request.ignore_eos,
        skip_special_tokens=request.skip_special_tokens,
        seed=request.seed,
        n=request.n,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        exit_layer=request.exit_layer,
        speculative=speculative_params(request),
    )


def completion_params(request: CompletionRequest) -> SamplingParams:
    """The engine's parameters of a completion; echoed prompts are scored like its tokens."""
    return sampling_params(
        request,
        max_tokens=request.max_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
    )


def _encode(prompt: str, tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.encode(prompt)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"prompt: {error}", param="prompt") from error


def _prepare_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, vocab_size: int, echo: bool
) -> list[EchoedPrompt]:
    prepared = []
    for prompt in prompts:
        token_ids = _encode(prompt, tokenizer) if isinstance(prompt, str) else prompt
        if not token_ids:
            raise InvalidRequestError("prompt must not be empty", param="prompt")
        if not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
            raise InvalidRequestError(
                f"prompt holds a token id outside the vocabulary of {vocab_size} tokens",
                param="prompt",
            )
        text = tokenizer.decode(token_ids, skip_special_tokens=False) if echo else ""
        prepared.append(EchoedPrompt(token_ids=tuple(token_ids), text=text))
    return prepared


async def prepare_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, vocab_size: int, echo: bool
) -> list[EchoedPrompt]:
    """Prompts as token ids, with their text if it is to be echoed; long ones in a thread.

    Raises `InvalidRequestError` for an empty prompt, for text that is no Unicode and for ids
    outside the vocabulary.
    """
    if sum(map(len, prompts)) <= INLINE_PROMPT_SIZE:
        return _prepare_prompts(prompts, tokenizer, vocab_size, echo)
    return await asyncio.to_thread(_prepare_prompts, prompts, tokenizer, vocab_size, echo)


async def merge_outputs(
    streams: Sequence[OutputStream],
) -> AsyncGenerator[tuple[int, ChoiceOutput], None]:
    """The outputs of all streams as they come, each with its stream's number."""
    if len(streams) == 1:
        async for output in streams[0]:
            yield 0, output
        return
    queue: asyncio.Queue[tuple[int, ChoiceOutput] | Exception | None] = asyncio.Queue()

    async def pump(number: int, stream: OutputStream) -> None:
        try:
            async for output in stream:
                queue.put_nowait((number, output))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    pumps = [asyncio.create_task(pump(*item)) for item in enumerate(streams)]
    try:
        num_open = len(pumps)
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()


@dataclass(slots=True)
class Completion:
    """One submitted completion request; make it with `submit_completion`.

    Read it once, by `events` or by `collect`, and call `abort` when done with it, whatever
    happened.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    request: CompletionRequest
    tokenizer: Tokenizer
    prompts: list[EchoedPrompt]
    streams: list[OutputStream]
    usage: UsageCounter
    assemblers: dict[int, ChoiceAssembler] = field(default_factory=dict)

    def abort(self) -> None:
        """Stop whatever still runs; idempotent."""
        for stream in self.streams:
            stream.abort()

    def envelope(self) -> dict[str, Any]:
        """The fields that every chunk and the response have in common, `choices` empty."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [],
            "system_fingerprint": self.fingerprint,
        }

    async def _outputs(self) -> AsyncGenerator[tuple[ChoiceAssembler, ChoiceOutput], None]:
        """Outputs with the assemblers that have already taken them in."""
        async with aclosing(merge_outputs(self.streams)) as outputs:
            async for number, output in outputs:
                index = number * self.request.n + output.index
                self.usage.count(number, output)
                if index not in self.assemblers:
                    self.assemblers[index] = self._assembler(index, number)
                self.assemblers[index].add(output)
                yield self.assemblers[index], output

    def _assembler(self, index: int, number: int) -> ChoiceAssembler:
        options = ChoiceOptions(
            logprobs=self.request.logprobs is not None,
            token_sources=self.request.return_token_sources,
        )
        echo = self.prompts[number] if self.request.echo else None
        return ChoiceAssembler(index, options, self.tokenizer, echo)

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream, the usage chunk excepted.

        Raises what ended the request early, after the text that came before it.
        """
        async with aclosing(self._outputs()) as outputs:
            async for assembler, output in outputs:
                if assembler.has_content or assembler.is_complete:
                    yield self._chunk(assembler)
                if assembler.is_failed:
                    raise output_error(output)

    def _chunk(self, assembler: ChoiceAssembler) -> dict[str, Any]:
        options = self.request.stream_options
        chunk = self.envelope()
        chunk["choices"] = [assembler.take()]
        if self.request.return_metrics and assembler.is_complete:
            chunk["metrics"] = assembler.metrics()
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = self.usage.to_dict()
        elif options is not None and options.include_usage:
            chunk["usage"] = None
        return chunk

    async def collect(self) -> dict[str, Any]:
        """The whole response; raises what ended the request early."""
        async with aclosing(self._outputs()) as outputs:
            async for assembler, output in outputs:
                if assembler.is_failed:
                    raise output_error(output)
        if len(self.assemblers) != len(self.prompts) * self.request.n:
            raise BitSkipError("the engine left a choice unanswered")
        response = self.envelope()
        for _, assembler in sorted(self.assemblers.items()):
            choice = assembler.take()
            if self.request.return_metrics:
                choice["metrics"] = assembler.metrics()
            response["choices"].append(choice)
        response["usage"] = self.usage.to_dict()
        if self.request.return_metrics and len(response["choices"]) == 1:
            response["metrics"] = response["choices"][0]["metrics"]
        return response


async def submit_completion(
    context: ServerContext, request: CompletionRequest, request_id: str
) -> Completion:
    """Hand a request to the engine, one submission per prompt.

    Raises `InvalidRequestError` and `EngineUnavailableError`; nothing is left running then.
    """
    model = context.served_name(request.model)
    engine = context.engine
    params = completion_params(request)
    prompts = await prepare_prompts(
        request.prompt, engine.tokenizer, engine.model_config.vocab_size, request.echo
    )
    completion = Completion(
        id=request_id,
        created=int(context.clock()),
        model=model,
        fingerprint=context.fingerprint,
        request=request,
        tokenizer=engine.tokenizer,
        prompts=prompts,
        streams=[],
        usage=UsageCounter(sum(len(prompt.token_ids) for prompt in prompts)),
    )
    try:
        for number, prompt in enumerate(prompts):
            part = request_id if len(prompts) == 1 else f"{request_id}-{number}"
            completion.streams.append(engine.submit(part, prompt.token_ids, params))
    except BaseException:
        completion.abort()
        raise
    return completion

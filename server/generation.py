"""From a validated request to the engine, and from its outputs to the response.

Both endpoints that generate go this way; `Endpoint` holds what sets them apart.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from engine.errors import BitSkipError, InvalidRequestError
from engine.types import ChoiceOutput, DraftMethod, SamplingParams, SpeculativeParams
from server.accounting import UsageCounter, metrics_object
from server.admission import Place
from server.chat_template import ChatTemplate
from server.choices import ChoiceAssembler, ChoicePart
from server.context import ServerContext
from server.engine_api import READY, Engine, OutputStream
from server.errors import output_error, unavailable
from server.formats import AnswerFormat, ChatFormat, CompletionFormat
from server.limits import check_limits
from server.prompts import (
    PreparedPrompt,
    chat_prompts,
    chat_sizes,
    completion_prompts,
    completion_sizes,
)
from server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest

R = TypeVar("R", bound=GenerationRequest)


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[R]):
    """What one of the endpoints does in its own way."""

    id_prefix: str
    request_model: type[R]
    answer_format: type[AnswerFormat[R]]
    measure: Callable[[R], list[int]]
    """How many tokens each prompt has, by a guess that costs nothing."""
    prepare: Callable[[R, Engine, ChatTemplate | None], Awaitable[list[PreparedPrompt]]]


COMPLETIONS = Endpoint(
    "cmpl", CompletionRequest, CompletionFormat, completion_sizes, completion_prompts
)
CHAT = Endpoint("chatcmpl", ChatCompletionRequest, ChatFormat, chat_sizes, chat_prompts)


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


def sampling_params(request: GenerationRequest) -> SamplingParams:
    """The engine's parameters of any request that generates; the engine checks their ranges."""
    return SamplingParams(
        max_tokens=request.max_new_tokens,
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=0 if request.top_k == -1 else request.top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=MappingProxyType(request.logit_bias or {}),
        allowed_token_ids=_tuple_or_none(request.allowed_token_ids),
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        include_stop_str_in_output=request.include_stop_str_in_output,
        ignore_eos=request.ignore_eos,
        skip_special_tokens=request.skip_special_tokens,
        seed=request.seed,
        n=request.n,
        logprobs=request.num_logprobs,
        prompt_logprobs=request.num_scored,
        exit_layer=request.exit_layer,
        speculative=speculative_params(request),
        priority=request.priority,
    )


def _tuple_or_none(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


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
class Generation:
    """One submitted request; make it with `submit`.

    Read it once, by `events` or by `collect`, and call `abort` when done with it, whatever
    happened.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    request: GenerationRequest
    format: AnswerFormat[Any]
    prompts: list[PreparedPrompt]
    place: Place
    streams: list[OutputStream]
    usage: UsageCounter
    assemblers: dict[int, ChoiceAssembler] = field(default_factory=dict)

    def abort(self) -> None:
        """Stop whatever still runs or waits; idempotent."""
        self.place.leave()
        for stream in self.streams:
            stream.abort()

    def envelope(self, *, is_chunk: bool = True) -> dict[str, Any]:
        """The fields that every chunk and the response have in common, `choices` empty."""
        return {
            "id": self.id,
            "object": self.format.chunk_object if is_chunk else self.format.whole_object,
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
                    self.assemblers[index] = ChoiceAssembler(index, self.prompts[number])
                self.assemblers[index].add(output)
                yield self.assemblers[index], output

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream, the usage chunk excepted.

        Raises what ended the request early, after the text that came before it.
        """
        is_first = True
        async with aclosing(self._outputs()) as outputs:
            async for assembler, output in outputs:
                if assembler.has_content or assembler.is_complete:
                    yield self._chunk(assembler.take(), is_first)
                    is_first = False
                if assembler.is_failed:
                    raise output_error(output)

    def _chunk(self, part: ChoicePart, is_first: bool) -> dict[str, Any]:
        options = self.request.stream_options
        chunk = self.envelope()
        chunk["choices"] = [self.format.choice(part, is_chunk=True)]
        if is_first and not self.format.prompt_facts_in_choice:
            chunk |= self.format.prompt_facts(part)
        if self.request.return_metrics and part.end is not None:
            chunk["metrics"] = metrics_object(part.metrics)
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
        parts = [assembler.take() for _, assembler in sorted(self.assemblers.items())]
        response = self.envelope(is_chunk=False)
        for part in parts:
            choice = self.format.choice(part, is_chunk=False)
            if self.request.return_metrics:
                choice["metrics"] = metrics_object(part.metrics)
            response["choices"].append(choice)
        response["usage"] = self.usage.to_dict()
        if not self.format.prompt_facts_in_choice:
            response |= self.format.prompt_facts(parts[0])
        if self.request.return_metrics and len(parts) == 1:
            response["metrics"] = response["choices"][0]["metrics"]
        return response


async def submit(context: ServerContext, endpoint: Endpoint[R], request: R) -> Generation:
    """Hand a request to the engine, one submission per prompt.

    Raises `InvalidRequestError` and `EngineUnavailableError`; nothing is left running then. What
    can be refused without reading the prompts is refused first.
    """
    model, engine = context.served_name(request.model), context.engine
    sizes = endpoint.measure(request)
    check_limits(context.settings, request, len(sizes))
    if engine.status != READY:
        raise unavailable(engine.status)
    # The engine's ids are unique, the client's need not be.
    own_id = uuid.uuid4().hex
    parts = [f"{endpoint.id_prefix}-{own_id}-{number}" for number in range(len(sizes))]
    place = context.line.enter(dict(zip(parts, sizes, strict=True)), request.n)
    streams: list[OutputStream] = []
    try:
        params = sampling_params(request)
        prompts = await endpoint.prepare(request, engine, context.chat_template)
        for part, prompt in zip(parts, prompts, strict=True):
            place.count_tokens(part, len(prompt.token_ids))
            streams.append(engine.submit(part, prompt.token_ids, params))
    except BaseException as error:
        place.leave()
        for stream in streams:
            stream.abort()
        if isinstance(error, InvalidRequestError):
            raise _in_words_of(request, error) from error
        raise
    return Generation(
        id=f"{endpoint.id_prefix}-{request.request_id or own_id}",
        created=int(context.clock()),
        model=model,
        fingerprint=context.fingerprint,
        request=request,
        format=endpoint.answer_format(request, engine.tokenizer),
        prompts=prompts,
        place=place,
        streams=streams,
        usage=UsageCounter(sum(len(prompt.token_ids) for prompt in prompts)),
    )


def _in_words_of(request: GenerationRequest, error: InvalidRequestError) -> InvalidRequestError:
    """The engine's error with the name under which the request gave what is at fault."""
    theirs = error.param or ""
    ours = request.engine_names.get(theirs)
    if ours is None:
        return error
    message = str(error)
    if message.startswith(f"{theirs} "):
        message = ours + message.removeprefix(theirs)
    return type(error)(message, param=ours)

"""From a validated request to the token ids that the engine gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.errors import InvalidRequestError
from server.admission import estimated_tokens
from server.chat_template import ChatTemplate
from server.engine_api import Engine
from server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest, Prompt

INLINE_PROMPT_SIZE = 4096
"""Characters and ids up to which prompts are prepared on the event loop itself: about 1 ms."""
MESSAGE_SIZE = 50
"""What a message costs beside its text, in the same unit."""

NO_TEMPLATE = (
    "messages cannot be turned into a prompt: this model has no chat template. Start the server "
    "with --chat-template FILE, or use /v1/completions"
)


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt as the engine sees it, and the text to put before the answer."""

    token_ids: tuple[int, ...]
    echo: str | None = None
    """None unless asked for."""


def completion_sizes(request: CompletionRequest) -> list[int]:
    """About how many tokens each prompt has."""
    return [estimated_tokens(prompt) for prompt in request.prompt]


def chat_sizes(request: ChatCompletionRequest) -> list[int]:
    """About how many tokens the messages have together; what the template adds is little."""
    return [sum(estimated_tokens(message.content) for message in request.messages)]


async def completion_prompts(
    request: CompletionRequest, engine: Engine, _: ChatTemplate | None
) -> list[PreparedPrompt]:
    """The prompts of a text completion; an echo is the whole prompt, special tokens kept.

    Raises `InvalidRequestError` for an empty prompt, for text that is no Unicode and for ids
    outside the vocabulary.
    """

    def prepare() -> list[PreparedPrompt]:
        prepared = []
        for prompt in request.prompt:
            ids = _token_ids(prompt, request, engine, "prompt")
            echo = None
            if request.echo:
                echo = engine.tokenizer.decode(ids, skip_special_tokens=False)
            prepared.append(PreparedPrompt(tuple(ids), echo))
        return prepared

    return await _off_the_loop_if_long(prepare, sum(map(len, request.prompt)))


async def chat_prompts(
    request: ChatCompletionRequest, engine: Engine, template: ChatTemplate | None
) -> list[PreparedPrompt]:
    """The one prompt of a chat; an echo is the final message, where the same speaker goes on.

    Raises `InvalidRequestError` without a template, and for messages that it refuses.
    """
    if template is None:
        raise InvalidRequestError(NO_TEMPLATE, param="messages")

    def prepare() -> list[PreparedPrompt]:
        text = template.render(
            [message.for_template() for message in request.messages],
            add_generation_prompt=request.answers,
            continue_final_message=request.continue_final_message,
            variables=request.chat_template_kwargs,
        )
        final = request.messages[-1]
        echo = final.content if request.echo and final.role == request.role else None
        return [PreparedPrompt(tuple(_token_ids(text, request, engine, "messages")), echo)]

    return await _off_the_loop_if_long(
        prepare, sum(MESSAGE_SIZE + len(message.content) for message in request.messages)
    )


async def _off_the_loop_if_long(
    prepare: Callable[[], list[PreparedPrompt]], size: int
) -> list[PreparedPrompt]:
    return prepare() if size <= INLINE_PROMPT_SIZE else await asyncio.to_thread(prepare)


def _token_ids(
    prompt: Prompt, request: GenerationRequest, engine: Engine, param: str
) -> Sequence[int]:
    """The prompt's ids, cut as the request asks; errors name `param`."""
    if isinstance(prompt, str):
        try:
            ids = engine.tokenizer.encode(prompt, request.add_special_tokens)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{param}: {error}", param=param) from error
    else:
        ids = prompt
    if not ids:
        raise InvalidRequestError(f"{param} must not be empty", param=param)
    vocab_size = engine.model_config.vocab_size
    if not (min(ids) >= 0 and max(ids) < vocab_size):
        raise InvalidRequestError(
            f"{param} holds a token id outside the vocabulary of {vocab_size} tokens", param=param
        )
    kept = _num_kept(request, engine.config.max_model_len or len(ids))
    return ids if kept is None else ids[-kept:]


def _num_kept(request: GenerationRequest, max_model_len: int) -> int | None:
    """How many of a prompt's last tokens to keep; None: all."""
    kept = request.truncate_prompt_tokens
    if kept is None:
        return None
    if kept > max_model_len:
        raise InvalidRequestError(
            f"truncate_prompt_tokens must be at most the model's context of {max_model_len} tokens",
            param="truncate_prompt_tokens",
        )
    if kept == -1:
        limit = request.max_new_tokens
        # An open-ended answer gets one token's room at least.
        kept = max(1, max_model_len - (1 if limit is None else limit))
    return kept

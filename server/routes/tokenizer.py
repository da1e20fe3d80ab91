"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from engine.errors import InvalidRequestError
from server.context import ServerContext, get_context, rejections_counted
from server.openapi import json_body
from server.prompts import INLINE_PROMPT_SIZE
from server.protocol import DetokenizeRequest, TokenizeRequest, parse_request
from server.protocol.tokenizer import DetokenizeResponse, TokenizeResponse, TokenizerInfo
from server.wire import JSONBody, read_object

router = APIRouter(tags=["tokenizer"])


@router.post(
    "/tokenize",
    response_model=None,
    openapi_extra=json_body(TokenizeRequest, {"a text": {"prompt": "Once upon a time"}}),
)
async def tokenize(http: Request) -> JSONBody:
    """The token ids of a text."""
    with rejections_counted(http):
        context = get_context(http)
        request = parse_request(TokenizeRequest, await read_object(http))
        context.served_name(request.model)
        if len(request.prompt) <= INLINE_PROMPT_SIZE:
            return JSONBody(_tokenized(context, request))
        return JSONBody(await asyncio.to_thread(_tokenized, context, request))


def _tokenized(context: ServerContext, request: TokenizeRequest) -> TokenizeResponse:
    tokenizer = context.engine.tokenizer
    try:
        tokens = tokenizer.encode(request.prompt, request.add_special_tokens)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"prompt: {error}", param="prompt") from error
    return {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": context.engine.config.max_model_len,
        "token_strs": (
            [tokenizer.token_text(token) for token in tokens] if request.return_token_strs else None
        ),
    }


@router.post(
    "/detokenize",
    response_model=None,
    openapi_extra=json_body(DetokenizeRequest, {"two tokens": {"tokens": [7, 8]}}),
)
async def detokenize(http: Request) -> JSONBody:
    """The text of token ids, special tokens included."""
    with rejections_counted(http):
        context = get_context(http)
        request = parse_request(DetokenizeRequest, await read_object(http))
        context.served_name(request.model)
        vocab_size = context.engine.model_config.vocab_size
        if not all(0 <= token < vocab_size for token in request.tokens):
            raise InvalidRequestError(
                f"tokens holds an id outside the vocabulary of {vocab_size} tokens", param="tokens"
            )
        decode = context.engine.tokenizer.decode
        if len(request.tokens) <= INLINE_PROMPT_SIZE:
            text = decode(request.tokens, False)
        else:
            text = await asyncio.to_thread(decode, request.tokens, False)
        answer: DetokenizeResponse = {"prompt": text}
        return JSONBody(answer)


@router.get("/tokenizer_info", response_model=None)
async def tokenizer_info(http: Request) -> JSONBody:
    """What the model's files say of its tokenizer."""
    tokenizer = get_context(http).engine.tokenizer
    special = tokenizer.special_tokens
    info: TokenizerInfo = {
        "tokenizer_class": tokenizer.tokenizer_class,
        "bos_token": special.get("bos_token"),
        "eos_token": special.get("eos_token"),
        "pad_token": special.get("pad_token"),
        "chat_template": tokenizer.chat_template,
    }
    return JSONBody(info)

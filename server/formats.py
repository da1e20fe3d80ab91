"""How the two endpoints write what is the same to the engine: the shape of choices and chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from server.choices import ChoicePart
from server.engine_api import Tokenizer
from server.logprobs import chat_logprobs, prompt_logprobs, text_logprobs, token_id_name
from server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest

R = TypeVar("R", bound=GenerationRequest)


class AnswerFormat(ABC, Generic[R]):
    """The shape of one endpoint's answers to one request."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    prompt_facts_in_choice: ClassVar[bool]
    """Whether what is told of the prompt stands in each choice, or once beside them."""

    def __init__(self, request: R, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer
        as_ids = request.return_tokens_as_token_ids
        self._name_of = token_id_name if as_ids else tokenizer.token_text

    def choice(self, part: ChoicePart, *, is_chunk: bool) -> dict[str, Any]:
        """An element of `choices`, of a chunk or of a whole answer."""
        choice = {
            "index": part.index,
            **self._content(part, is_chunk),
            "logprobs": self._logprobs(part),
            "finish_reason": part.end.finish_reason if part.end else None,
            "stop_reason": part.end.stop_reason if part.end else None,
        }
        if self._request.return_token_sources:
            choice["token_sources"] = [
                {"token_id": token.token_id, "text": token.text, "source": token.source}
                for token in part.tokens
            ]
        if self._request.return_token_ids:
            choice["token_ids"] = [token.token_id for token in part.tokens]
        if self.prompt_facts_in_choice:
            choice |= self.prompt_facts(part)
        return choice

    def prompt_facts(self, part: ChoicePart) -> dict[str, Any]:
        """What the request wants to know of its prompt, if this is the part to tell it."""
        facts: dict[str, Any] = {}
        if self._request.return_token_ids and part.is_first:
            facts["prompt_token_ids"] = list(part.prompt.token_ids)
        if self._request.prompt_logprobs is not None and part.is_first:
            scores = part.prompt_logprobs or ()
            facts["prompt_logprobs"] = prompt_logprobs(
                scores, self._request.prompt_logprobs, self._tokenizer.token_text
            )
        return facts

    @abstractmethod
    def _content(self, part: ChoicePart, is_chunk: bool) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, part: ChoicePart) -> dict[str, Any] | None: ...


class CompletionFormat(AnswerFormat[CompletionRequest]):
    """OpenAI's text completions."""

    whole_object = chunk_object = "text_completion"
    prompt_facts_in_choice = True

    def _content(self, part: ChoicePart, is_chunk: bool) -> dict[str, Any]:
        return {"text": part.text}

    def _logprobs(self, part: ChoicePart) -> dict[str, Any] | None:
        count = self._request.num_logprobs
        if count is None:
            return None
        return text_logprobs(part, count, self._tokenizer, self._name_of)


class ChatFormat(AnswerFormat[ChatCompletionRequest]):
    """OpenAI's chat completions; the role comes with a stream's first content."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    prompt_facts_in_choice = False

    def _content(self, part: ChoicePart, is_chunk: bool) -> dict[str, Any]:
        role, content = {"role": self._request.role}, {"content": part.text}
        if is_chunk:
            return {"delta": {**role, **content} if part.is_first else content}
        return {"message": {**role, **content, "refusal": None}}

    def _logprobs(self, part: ChoicePart) -> dict[str, Any] | None:
        count = self._request.num_logprobs
        if count is None:
            return None
        return chat_logprobs(part.tokens, count, self._tokenizer, self._name_of)

"""Answers of the two endpoints that generate, checked against their documented shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from server.protocol.answers import (
    AnswerModel,
    ChatAnswer,
    ChatChunk,
    CompletionAnswer,
    CompletionChunk,
    ErrorAnswer,
)
from support.sse import parse_events

WHOLE: dict[str, type[AnswerModel]] = {
    "text_completion": CompletionAnswer,
    "chat.completion": ChatAnswer,
}
CHUNKS: dict[str, type[AnswerModel]] = {
    "text_completion": CompletionChunk,
    "chat.completion.chunk": ChatChunk,
}


@dataclass(slots=True)
class Answer:
    """What came back: a whole answer or the events of a stream, or an error."""

    status: int
    content_type: str
    body: dict[str, Any] = field(default_factory=dict)
    """The whole answer, or an error; empty for a stream."""
    events: list[Any] = field(default_factory=list)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which it must be."""
        assert self.status >= 400, self.body
        return self.body["error"]

    @property
    def choice(self) -> dict[str, Any]:
        """The first choice of a whole answer."""
        assert self.status == 200, self.body
        return self.body["choices"][0]

    @property
    def text(self) -> str:
        """The first choice's text."""
        return choice_text(self.choice)

    @property
    def ids(self) -> list[int]:
        """The first choice's token ids, under `return_token_ids`."""
        return self.choice["token_ids"]

    @property
    def prompt_ids(self) -> list[int]:
        """The first prompt's token ids, under `return_token_ids`."""
        return (self.body | self.choice)["prompt_token_ids"]

    @property
    def num_tokens(self) -> int:
        """Generated tokens of all choices."""
        return self.body["usage"]["completion_tokens"]


def choice_text(choice: dict[str, Any]) -> str:
    """The text of a choice, or the piece of it, in any of the four forms."""
    message = choice.get("message") or choice.get("delta")
    return choice["text"] if message is None else message["content"]


def stream_text(events: list[Any], index: int = 0) -> str:
    """The text of one choice of a stream."""
    choices = [choice for event in events for choice in event.get("choices", ())]
    return "".join(choice_text(choice) for choice in choices if choice["index"] == index)


def read_answer(response: httpx.Response) -> Answer:
    """Parse a response and hold it to its documented shape."""
    kind = response.headers["content-type"].split(";")[0]
    if kind == "text/event-stream":
        events = parse_events(response.content)
        for event in events:
            model = ErrorAnswer if "error" in event else CHUNKS[event["object"]]
            model.model_validate(event)
        return Answer(response.status_code, kind, events=events)
    assert kind == "application/json", response.text
    body = response.json()
    model = WHOLE[body["object"]] if response.status_code == 200 else ErrorAnswer
    model.model_validate(body)
    return Answer(response.status_code, kind, body)


Post = Callable[[dict[str, Any]], Answer]

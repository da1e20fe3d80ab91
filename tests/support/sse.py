"""Reading server-sent events strictly, byte by byte."""

from __future__ import annotations

import json
from typing import Any


def parse_events(body: bytes) -> list[Any]:
    """The JSON events of a finished stream; asserts its exact framing."""
    assert b"\r" not in body
    frames = body.split(b"\n\n")
    assert frames.pop() == b""
    assert frames.pop() == b"data: [DONE]"
    for frame in frames:
        assert frame.startswith(b"data: {") and b"\n" not in frame, frame
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def joined_text(events: list[Any], index: int = 0) -> str:
    """The text of one choice of a stream."""
    choices = [choice for event in events for choice in event.get("choices", ())]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)

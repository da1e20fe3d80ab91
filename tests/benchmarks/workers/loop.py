"""A worker's side of the conversation: verbs in on stdin, answers out on stdout, JSON lines."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any


def serve(worker: Any) -> None:
    """Answer requests with the worker's public methods until stdin ends.

    A request is `{"verb": NAME, "args": {...}}`; its answer is `{"value": ...}` or
    `{"error": TRACEBACK}`.
    """
    # Native libraries print where they like: only answers may reach the pipe.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        verb = request["verb"]
        answer: dict[str, Any]
        try:
            if verb.startswith("_"):
                raise AttributeError(f"{verb} is not a verb")
            answer = {"value": getattr(worker, verb)(**request["args"])}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

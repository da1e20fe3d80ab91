"""What a client counts of the answers that it gets, to hold a server's metrics against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from support.sse import parse_events


@dataclass(frozen=True)
class Choice:
    """One streamed choice that ran to its end."""

    exit_layer: int
    finish_reason: str
    prompt_tokens: int
    sources: Counter[str]
    """How many of its tokens came from where."""
    metrics: dict[str, Any]
    """What the answer itself said of its timing and drafts."""

    @property
    def num_tokens(self) -> int:
        return self.sources.total()

    @property
    def speculation(self) -> dict[str, Any] | None:
        return self.metrics["speculative_decoding"]

    @property
    def draft_depth(self) -> int | None:
        """0 for n-grams, None if nothing was drafted."""
        return None if self.speculation is None else self.speculation["draft_exit_layer"] or 0


@dataclass
class ClientLedger:
    """Every answer of a client's requests."""

    http: httpx.Client
    choices: list[Choice] = field(default_factory=list)
    usages: list[dict[str, Any]] = field(default_factory=list)
    refusals: Counter[str | None] = field(default_factory=Counter)
    """Error code → requests that were refused with it."""

    def stream(self, **body: Any) -> list[Choice]:
        """Stream a completion to its end, which must be a good one."""
        asked = body | {
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_metrics": True,
            "return_token_sources": True,
        }
        response = self.http.post("/v1/completions", json=asked)
        assert response.status_code == 200, response.text
        *events, last = parse_events(response.content)
        usage = last["usage"]
        sources: dict[int, Counter[str]] = {}
        ended: list[Choice] = []
        for event in events:
            (choice,) = event["choices"]
            tokens = sources.setdefault(choice["index"], Counter())
            tokens.update(token["source"] for token in choice["token_sources"])
            if choice["finish_reason"] is not None:
                metrics = event["metrics"]
                ended.append(
                    Choice(
                        metrics["exit_layer"],
                        choice["finish_reason"],
                        usage["prompt_tokens"],
                        tokens,
                        metrics,
                    )
                )
        assert usage["completion_tokens"] == sum(choice.num_tokens for choice in ended)
        self.choices += ended
        self.usages.append(usage)
        return ended

    def refuse(self, **body: Any) -> None:
        """Send a request that must be refused."""
        response = self.http.post("/v1/completions", json=body)
        assert 400 <= response.status_code < 500, response.text
        self.refusals[response.json()["error"]["code"]] += 1

    def leave(self, **body: Any) -> None:
        """Begin to read a stream, and go."""
        with self.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            assert next(stream.iter_raw())

    def add(self, other: ClientLedger) -> None:
        """Take over what another client has counted."""
        self.choices += other.choices
        self.usages += other.usages
        self.refusals += other.refusals

    @property
    def prompt_tokens(self) -> int:
        return sum(usage["prompt_tokens"] for usage in self.usages)

    @property
    def tokens(self) -> Counter[tuple[int, str]]:
        """(exit layer, source) → tokens."""
        counts: Counter[tuple[int, str]] = Counter()
        for choice in self.choices:
            for source, number in choice.sources.items():
                counts[choice.exit_layer, source] += number
        return counts

    @property
    def finish_reasons(self) -> Counter[str]:
        return Counter(choice.finish_reason for choice in self.choices)

    def drafts(self, figure: str) -> Counter[int]:
        """Draft depth → the sum of a figure of `speculative_decoding`, such as `num_drafts`."""
        counts: Counter[int] = Counter()
        for choice in self.choices:
            if choice.speculation is not None and choice.draft_depth is not None:
                counts[choice.draft_depth] += choice.speculation[figure]
        return counts

    @property
    def accepted_at(self) -> Counter[tuple[int, int]]:
        """(draft depth, position) → accepted drafts."""
        counts: Counter[tuple[int, int]] = Counter()
        for choice in self.choices:
            if choice.speculation is not None and choice.draft_depth is not None:
                accepted = choice.speculation["accepted_per_position"]
                for position, number in enumerate(accepted):
                    counts[choice.draft_depth, position] += number
        return counts

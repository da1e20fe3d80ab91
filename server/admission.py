"""Who may wait for a place in the engine, and how long: decided before anything is computed.

A request waits from its arrival until the engine admits its first choice. Its prompts are
measured in characters, so that refusing a flood costs neither tokenising nor memory.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.metrics import StepStats
from server.errors import RETRY_AFTER_S, LimitError, QueueFullError, QueueTimeoutError

CHARACTERS_PER_TOKEN = 4
"""Of ordinary English under byte-level BPE; an estimate that lasts until the text is tokenised."""
RATE_WINDOW_S = 60.0
"""How far back the line looks to say how fast it moves."""
MAX_RETRY_AFTER_S = 60


@dataclass(slots=True)
class Share:
    """One prompt's part of the line."""

    num_choices: int
    """Choices that still wait."""
    num_tokens: int
    """Of the prompt; 0 once its first choice was admitted."""
    num_running: int = 0
    """Choices that have left the line for the engine."""


def estimated_tokens(prompt: str | list[int]) -> int:
    """Tokens of a prompt that has not been tokenised."""
    return -(-len(prompt) // CHARACTERS_PER_TOKEN) if isinstance(prompt, str) else len(prompt)


class Place:
    """One request's place; whoever takes it must `leave` in the end, whatever happens."""

    def __init__(self, line: WaitingLine, shares: dict[str, Share]) -> None:
        self._line = line
        self.shares = shares
        self.called = asyncio.Event()
        """Set once the engine has taken a choice, or ended one that it never took."""

    def count_tokens(self, part: str, num_tokens: int) -> None:
        """Replace the estimate of one prompt's tokens, now that they are known."""
        share = self.shares[part]
        self._line.num_tokens += num_tokens - share.num_tokens
        share.num_tokens = num_tokens

    async def wait(self, timeout_s: float) -> None:
        """Return once the engine has taken the request; raises `QueueTimeoutError`."""
        try:
            await asyncio.wait_for(self.called.wait(), timeout_s)
        except TimeoutError:
            raise QueueTimeoutError(
                f"The request waited {timeout_s:g} s for a place, which is as long as this "
                "server lets requests wait"
            ) from None

    def leave(self) -> None:
        """Free the place, and all that it counted; idempotent."""
        self._line.forget(self)


class WaitingLine:
    """Counts those who wait, and refuses more than its limits. Belongs on the event loop."""

    num_requests: int
    """Requests that wait or run."""
    num_choices: int
    """Choices that wait."""
    num_tokens: int
    """Prompt tokens that wait."""
    num_running: int
    """Choices that the engine has taken, of requests that have not ended."""

    def __init__(
        self,
        *,
        max_choices: int,
        max_tokens: int,
        max_running: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Limits of what waits; `max_running` choices run at once, as long as K/V allows."""
        self._max_choices = max_choices
        self._max_tokens = max_tokens
        self._max_running = max_running
        self._clock = clock
        self.num_requests = self.num_choices = self.num_tokens = self.num_running = 0
        self._places: dict[str, Place] = {}
        self._engine_is_full = False
        self._departures: deque[tuple[float, int]] = deque()
        """(time, prompt tokens) of the choices that were admitted lately."""

    def enter(self, prompts: Mapping[str, int], num_choices: int) -> Place:
        """Take a place for prompts (submission → tokens) with `num_choices` choices each.

        Raises `QueueFullError`; `LimitError` for more choices than can ever be taken.
        """
        num_new, num_new_tokens = len(prompts) * num_choices, sum(prompts.values())
        self._check(num_new, num_new_tokens)
        place = Place(self, {part: Share(num_choices, size) for part, size in prompts.items()})
        self._places.update(dict.fromkeys(prompts, place))
        self.num_requests += 1
        self.num_choices += num_new
        self.num_tokens += num_new_tokens
        return place

    def _check(self, num_new: int, num_new_tokens: int) -> None:
        limit = self._max_choices + self._max_running
        if num_new > limit:
            raise LimitError(
                f"The request asks for {num_new} completions; this server takes at most {limit} "
                "at once"
            )
        num_free = 0 if self._engine_is_full else max(0, self._max_running - self.num_running)
        num_over = self.num_choices + num_new - self._max_choices - num_free
        if num_over > 0:
            raise QueueFullError(
                f"{self.num_choices} completions are waiting, and this server lets "
                f"{self._max_choices} wait; try again later",
                self._time_for(num_over, 0),
            )
        num_tokens_over = self.num_tokens + num_new_tokens - self._max_tokens
        # However long a prompt is: it may come in if nobody is before it.
        if num_tokens_over > 0 and self.num_tokens:
            raise QueueFullError(
                f"Prompts of about {self.num_tokens} tokens are waiting, and this server lets "
                f"{self._max_tokens} wait; try again later",
                self._time_for(0, num_tokens_over),
            )

    def _time_for(self, num_choices: int, num_tokens: int) -> int:
        """Whole seconds in which the line, at its present pace, gives up so much."""
        now_s = self._clock()
        self._forget_departures_before(now_s - RATE_WINDOW_S)
        if not self._departures:
            return RETRY_AFTER_S
        elapsed_s = max(1.0, now_s - self._departures[0][0])
        num_tokens_left = max(1, sum(tokens for _, tokens in self._departures))
        share = max(num_choices / len(self._departures), num_tokens / num_tokens_left)
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(elapsed_s * share)))

    def _forget_departures_before(self, time_s: float) -> None:
        while self._departures and self._departures[0][0] < time_s:
            self._departures.popleft()

    def observe(self, stats: StepStats) -> None:
        """Let those go whom the engine has taken, or ended."""
        if stats.left_queue:
            now_s = self._clock()
            self._forget_departures_before(now_s - RATE_WINDOW_S)
            for part in stats.left_queue:
                self._let_go(part, now_s)
        self._engine_is_full = stats.num_waiting > 0

    def _let_go(self, part: str, now_s: float) -> None:
        place = self._places.get(part)
        if place is None or not place.shares[part].num_choices:
            return
        share = place.shares[part]
        self._departures.append((now_s, share.num_tokens))
        self.num_tokens -= share.num_tokens
        self.num_choices -= 1
        self.num_running += 1
        share.num_choices, share.num_tokens = share.num_choices - 1, 0
        share.num_running += 1
        place.called.set()

    def forget(self, place: Place) -> None:
        """Count a place no longer; done by its `leave`."""
        if self._places.get(next(iter(place.shares))) is not place:
            return
        self.num_requests -= 1
        for part, share in place.shares.items():
            del self._places[part]
            self.num_choices -= share.num_choices
            self.num_tokens -= share.num_tokens
            self.num_running -= share.num_running

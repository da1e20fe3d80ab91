"""When to try again, and how long to wait before."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from clients.errors import (
    APIError,
    ClientError,
    QueueFullError,
    QueueTimeoutError,
    ServerConnectionError,
    StreamInterruptedError,
    UnavailableError,
)

_RETRYABLE = (QueueTimeoutError, QueueFullError, UnavailableError, ServerConnectionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with jitter; what the server asks for in Retry-After comes first.

    Tried again are requests that the server did not begin (408, 429, 503) and connections that
    failed before anything of the answer came. Silence (`ResponseTimeoutError`) is not: the
    request may still be running, and a second one would only add to the load.
    """

    max_retries: int = 2
    """Further attempts after the first; 0 turns retries off."""
    initial_delay_s: float = 0.5
    """Wait before the first retry; it doubles with each."""
    max_delay_s: float = 8.0
    """Longest wait of our own choosing."""
    max_retry_after_s: float = 60.0
    """A server that asks for more than this is not waited for."""
    jitter: float = 0.25
    """Share of a wait that is left to chance, so that clients do not return all at once."""
    draw: Callable[[], float] = random.random
    """Where chance comes from: numbers from 0 to 1."""

    def __post_init__(self) -> None:
        if self.max_retries < 0 or not 0 <= self.jitter <= 1:
            raise ValueError("max_retries must be at least 0, and jitter lie in 0..1")
        if min(self.initial_delay_s, self.max_delay_s, self.max_retry_after_s) < 0:
            raise ValueError("waits must be at least 0")

    def delay_s(self, num_failures: int, error: ClientError) -> float | None:
        """Seconds to wait after this many failures, the last being `error`; None: give up."""
        is_retryable = isinstance(error, _RETRYABLE) and not isinstance(
            error, StreamInterruptedError
        )
        if not is_retryable or num_failures > self.max_retries:
            return None
        own_s = min(self.max_delay_s, self.initial_delay_s * 2.0 ** (num_failures - 1))
        asked_s = error.retry_after_s if isinstance(error, APIError) else None
        if asked_s is None:
            return own_s * (1.0 - self.jitter * self.draw())
        if asked_s > self.max_retry_after_s:
            return None
        # Never earlier than asked, so chance only adds here.
        return asked_s + own_s * self.jitter * self.draw()


NO_RETRIES = RetryPolicy(max_retries=0)


def retry_after_s(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date); None if it says nothing."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now())
    except ValueError:
        return None

"""Token ids to text, one token at a time, with stop strings.

A character belongs to the token whose bytes complete it. What may still change is held back:
text that may be the beginning of a stop string, and a token that ends inside a character.
Once released, text never changes.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class TokenDecoder(Protocol):
    """What the detokenizer asks of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The tokens without text under `skip_special_tokens`."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token."""
        ...

    def first_token_bytes(self, token_id: int) -> bytes:
        """Its bytes as the first token with any of a text."""
        ...


@dataclass(slots=True)
class _Pending:
    """A pushed token that is not released yet; its text starts at character `start`."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class Detokenizer:
    """The text of one choice, token by token, cut at the first stop string.

    The released texts, joined, are the UTF-8 decoding (errors replaced by U+FFFD) of all
    pushed tokens' bytes, cut where a stop string matched: at its start, or after its end with
    `include_stop_str_in_output`. Each pushed token is released exactly once, in order. If none
    of the tokens of `prompt` has text, the text begins with the first pushed token that has.

    A stop string matches when a token completes it that was pushed with `check_stop`; it may
    begin in earlier, unchecked text, but one that ends there never matches (vLLM's rule for
    `min_tokens`). Among those that one token completes, the one that starts first wins, then
    the one listed first. After a match, as after a final release, the text is closed: tokens
    pushed later have empty texts.

    Time per token does not depend on the length of the text, only on its own and on what is
    held back.
    """

    def __init__(
        self,
        tokenizer: TokenDecoder,
        stop: tuple[str, ...] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        prompt: Iterable[int] = (),
    ) -> None:
        """Raises `ValueError` for an empty stop string."""
        self._tokenizer = tokenizer
        self._include_stop = include_stop_str_in_output
        self._skipped_ids = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._matchers = [_StopMatcher(text) for text in stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending: deque[_Pending] = deque()
        self._tail_owner: _Pending | None = None
        """The last token with bytes, while it ends inside a character."""
        self._num_chars = 0
        self._closed = False
        self._begins_text = not any(map(self._shown_bytes, prompt))

    def push(self, token_id: int, check_stop: bool = True) -> str | None:
        """Add one token; returns the stop string that it completes, if any."""
        if self._closed:
            self._pending.append(_Pending("", self._num_chars))
            return None
        raw = self._shown_bytes(token_id)
        if raw and self._begins_text:
            self._begins_text = False
            raw = self._tokenizer.first_token_bytes(token_id)
        token = _Pending(self._decode(raw), self._num_chars)
        self._pending.append(token)
        self._num_chars = token.end
        if raw:
            ends_inside_character = bool(self._decoder.getstate()[0])
            self._tail_owner = token if ends_inside_character else None
        match = self._scan(token)
        if match is None or not check_stop:
            return None
        start, stop = match
        self._close(start + len(stop) if self._include_stop else start)
        return stop

    def release(self, final: bool) -> list[str]:
        """The texts of the tokens that are now decided, in the order of pushing.

        `final` releases everything. A character that is still incomplete then becomes U+FFFD
        at the end of the last token that has bytes; no stop string is looked for in it.
        """
        if final and not self._closed:
            if self._tail_owner is not None:
                replacement = self._decoder.decode(b"", final=True)
                self._tail_owner.text += replacement
                self._num_chars += len(replacement)
            self._close(self._num_chars)
        num_held = max((matcher.depth for matcher in self._matchers), default=0)
        num_decided = self._num_chars if self._closed else self._num_chars - num_held
        texts: list[str] = []
        while self._pending:
            token = self._pending[0]
            if token is self._tail_owner or token.end > num_decided:
                break
            texts.append(self._pending.popleft().text)
        return texts

    def _shown_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._skipped_ids else self._tokenizer.token_bytes(token_id)

    def _decode(self, raw: bytes) -> str:
        """Add bytes; the characters that they complete, or make impossible to complete."""
        text = self._decoder.decode(raw)
        tail = self._decoder.getstate()[0]
        # CPython also waits after the beginning of an encoded surrogate (ED A0), which can
        # become no character: unlike a real beginning, it counts as more than one error.
        if len(tail.decode("utf-8", errors="replace")) > 1:
            text += self._decoder.decode(b"", final=True)
        return text

    def _scan(self, token: _Pending) -> tuple[int, str] | None:
        """Feed a token's text to every matcher; the best match's start and stop string."""
        best: tuple[int, str] | None = None
        for matcher in self._matchers:
            for offset, character in enumerate(token.text, start=1):
                if matcher.feed(character):
                    start = token.start + offset - len(matcher.stop)
                    if best is None or start < best[0]:
                        best = start, matcher.stop
        return best

    def _close(self, num_chars: int) -> None:
        """End the text after `num_chars` characters; those beyond were never released."""
        for token in self._pending:
            token.text = token.text[: max(0, num_chars - token.start)]
            token.start = min(token.start, num_chars)
        self._num_chars = num_chars
        self._tail_owner = None
        self._closed = True


class _StopMatcher:
    """Looks for one string in text fed character by character (Knuth, Morris, Pratt)."""

    __slots__ = ("_borders", "depth", "stop")

    def __init__(self, stop: str) -> None:
        if not stop:
            raise ValueError("a stop string must not be empty")
        self.stop = stop
        self.depth = 0
        """Length of the longest ending of the text that may yet grow into the string."""
        # _borders[k]: the longest proper prefix of stop[:k] that is also its ending.
        self._borders = [0, 0]
        border = 0
        for character in stop[1:]:
            while border and stop[border] != character:
                border = self._borders[border]
            border += stop[border] == character
            self._borders.append(border)

    def feed(self, character: str) -> bool:
        """Add a character; whether it completes the string."""
        while self.depth and self.stop[self.depth] != character:
            self.depth = self._borders[self.depth]
        self.depth += self.stop[self.depth] == character
        if self.depth < len(self.stop):
            return False
        self.depth = self._borders[self.depth]
        return True

"""Streamed text on a terminal, each token in the colour of its source."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.console import Console
from rich.text import Text

from clients.types import Metrics, SourcedToken, TokenSource

STYLES: Mapping[TokenSource, str] = MappingProxyType(
    {
        TokenSource.DRAFT: "green",
        TokenSource.CORRECTED: "yellow",
        TokenSource.BONUS: "",
        TokenSource.PLAIN: "",
    }
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Everything but tabs and line feeds: a model must not move the cursor or set the title."""


class Painter:
    """Writes one answer to stdout as it comes, and its closing line to stderr.

    Colours are for terminals only; elsewhere exactly the text is written.
    """

    def __init__(self, out: Console | None = None, notes: Console | None = None) -> None:
        self._out = out or Console(highlight=False)
        self._notes = notes or Console(stderr=True, highlight=False)
        self._sources: Counter[TokenSource] = Counter()
        self._at_line_start = True

    def add(self, text: str, tokens: Sequence[SourcedToken] | None) -> None:
        """Write what one event brought."""
        for token in tokens or ():
            self._sources[token.source] += 1
        if text:
            self._at_line_start = text.endswith("\n")
        if not self._out.is_terminal:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        painted = Text()
        if tokens and "".join(token.text for token in tokens) == text:
            for token in tokens:
                painted.append(_CONTROLS.sub("\ufffd", token.text), STYLES[token.source])
        else:
            painted.append(_CONTROLS.sub("\ufffd", text))
        self._out.print(painted, end="", soft_wrap=True)

    def close(self, metrics: Metrics | None, finish_reason: str | None) -> None:
        """End the line, and say how the answer came about."""
        if not self._at_line_start:
            sys.stdout.write("\n")
            sys.stdout.flush()
        if metrics is not None:
            self._notes.print(self._closing_line(metrics, finish_reason), soft_wrap=True)

    def _closing_line(self, metrics: Metrics, finish_reason: str | None) -> Text:
        line = Text(style="dim")
        parts = [f"{self._sources.total()} tokens"]
        if metrics.tokens_per_second is not None:
            parts.append(f"{metrics.tokens_per_second:.0f} tok/s")
        if metrics.time_to_first_token_ms is not None:
            parts.append(f"first after {metrics.time_to_first_token_ms:.0f} ms")
        parts.append(f"exit {metrics.exit_layer}")
        line.append(", ".join(parts))
        drafts = metrics.speculation
        if drafts is None:
            line.append(", nothing drafted")
        else:
            depth = drafts.draft_exit_layer
            by = "n-grams" if depth is None else f"{depth} layers"
            line.append(
                f", {drafts.draft_acceptance_rate:.0%} of {drafts.num_draft_tokens} drafts by "
                f"{by} accepted ("
            )
            for number, source in enumerate(TokenSource):
                line.append(", " if number else "")
                line.append(f"{self._sources[source]} {source.value}", STYLES[source])
            line.append(")")
        if finish_reason == "length":
            line.append("; stopped at the limit of tokens")
        return line

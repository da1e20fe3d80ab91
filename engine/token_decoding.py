"""Vocabulary entries to the bytes that they stand for, as a tokenizer's decoder says.

Two families write vocabularies differently. Byte-level BPE (GPT-2, Llama 3) spells every byte as
a printable character. SentencePiece's (Llama 2) are plain text with `▁` for a space, and with
`<0x0A>` and its like for the bytes of characters that the vocabulary lacks; encoding puts a space
before a text, and decoding drops it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import tokenizers

from engine.errors import TokenizerError


def _byte_alphabet() -> dict[str, int]:
    """Character → byte of GPT-2's printable alphabet (`bytes_to_unicode` in its encoder.py).

    Printable Latin-1 bytes stand for themselves, the others, in order, for U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)).difference(printable))
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_ALPHABET: Mapping[str, int] = MappingProxyType(_byte_alphabet())

_TO_LATIN1 = {code: 0xFFFF for code in range(256)} | {
    ord(character): byte for character, byte in BYTE_ALPHABET.items()
}
"""The byte alphabet as code points of the bytes; what else is Latin-1 leads out of it."""
_BYTE_ENTRY = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class TokenDecoding:
    """What the entries of one vocabulary stand for."""

    entry_bytes: Callable[[str], bytes]
    """The bytes of an entry."""
    first_bytes: Callable[[str], bytes]
    """Its bytes where a text begins with it: a space that encoding put there is dropped."""
    is_byte: Callable[[str], bool]
    """Whether an entry is a byte to fall back on."""


def read_decoding(backend: tokenizers.Tokenizer) -> TokenDecoding:
    """How a tokenizer's decoder turns entries into bytes; raises `TokenizerError`, naming it."""
    if backend.decoder is None:
        raise TokenizerError(f"tokenizer decoder none is not supported: {_SUPPORTED}")
    # What pickling makes of it is the JSON of tokenizer.json, but for all the rest of that file.
    steps = list(_flat(json.loads(backend.decoder.__getstate__())))
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return TokenDecoding(_byte_level_bytes, _byte_level_bytes, lambda _: False)
    pieces = _Pieces.of(steps)
    if pieces is None:
        name = names[0] if len(names) == 1 else f"Sequence({', '.join(names)})"
        raise TokenizerError(f"tokenizer decoder {name} is not supported: {_SUPPORTED}")
    return TokenDecoding(pieces.entry_bytes, pieces.first_bytes, pieces.is_byte)


_SUPPORTED = (
    "only ByteLevel (byte-level BPE) is, and Replace or Metaspace followed by ByteFallback, Fuse "
    "and Strip of one leading space (SentencePiece)"
)


def _flat(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The steps of a decoder, those of sequences in place of them."""
    if step["type"] == "Sequence":
        for part in step["decoders"]:
            yield from _flat(part)
    else:
        yield step


def _byte_level_bytes(text: str) -> bytes:
    """By the rule of the library's ByteLevel decoder.

    Entries are written in the byte alphabet; added tokens are plain text, and those with any
    character outside the alphabet are taken as such.
    """
    try:
        return text.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


@dataclass(frozen=True, slots=True)
class _Pieces:
    """SentencePiece's way, as the library's decoders follow each other in it."""

    mark: str
    """Stands for a space."""
    has_byte_entries: bool
    drops_first_space: bool
    drops_all_marks: bool
    """Metaspace: a first entry loses every mark, not only a leading one."""

    @classmethod
    def of(cls, steps: list[Mapping[str, Any]]) -> _Pieces | None:
        """Read the decoder's steps; None for any but these, in this order."""
        rest = list(steps)
        metaspace = _take(rest, "Metaspace")
        replace = None if metaspace else _take(rest, "Replace")
        has_byte_entries = _take(rest, "ByteFallback") is not None
        is_fused = _take(rest, "Fuse") is not None
        strip = _take(rest, "Strip") if is_fused else None
        if rest or (strip and (strip["content"], strip["start"], strip["stop"]) != (" ", 1, 0)):
            return None
        if metaspace:
            mark, drops_all = metaspace["replacement"], metaspace["prepend_scheme"] != "never"
        elif replace and replace["content"] == " " and replace["pattern"].get("String"):
            mark, drops_all = replace["pattern"]["String"], False
        else:
            return None
        return cls(mark, has_byte_entries, strip is not None, drops_all)

    def is_byte(self, text: str) -> bool:
        return self.has_byte_entries and _BYTE_ENTRY.fullmatch(text) is not None

    def entry_bytes(self, text: str) -> bytes:
        return self._bytes(text, " ")

    def first_bytes(self, text: str) -> bytes:
        raw = self._bytes(text, "" if self.drops_all_marks else " ")
        return raw.removeprefix(b" ") if self.drops_first_space else raw

    def _bytes(self, text: str, space: str) -> bytes:
        if self.has_byte_entries and (match := _BYTE_ENTRY.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return text.replace(self.mark, space).encode()


def _take(steps: list[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """The first step, taken off, if it is of that kind."""
    return steps.pop(0) if steps and steps[0]["type"] == kind else None

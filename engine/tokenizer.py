"""Text to token ids and back, for byte-level BPE.

Every token stands for exact bytes (`Tokenizer.token_bytes`); text is those bytes joined and
decoded as UTF-8. The `tokenizers` library encodes, so ids are those that Hugging Face gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import tokenizers

from engine.errors import InvalidRequestError, TokenizerError
from engine.tokenizer_files import read_directory


def _byte_alphabet() -> dict[str, int]:
    """Character → byte of GPT-2's printable alphabet (`bytes_to_unicode` in its encoder.py).

    Printable Latin-1 bytes stand for themselves, the others, in order, for U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)).difference(printable))
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_ALPHABET: Mapping[str, int] = MappingProxyType(_byte_alphabet())


class Tokenizer:
    """A byte-level BPE tokenizer and the facts about its special tokens.

    `vocab_size` is one more than the highest id. Ids without a token (holes, and the ids that
    pad a model's vocabulary) stand for no bytes. `special_ids` are the tokens that
    `skip_special_tokens` leaves out. `eos_token_ids` are all the ids that end a text, the
    tokenizer's own first; `eos_token_id` is the first of them. `special_tokens` gives the texts
    of those with a role (`bos_token` …), and `chat_template` the Jinja source that turns messages
    into a prompt, where the files have one. `tokenizer_class` names the Hugging Face class that
    the files say they are of.
    """

    vocab_size: int
    special_ids: frozenset[int]
    eos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    special_tokens: Mapping[str, str]
    chat_template: str | None
    tokenizer_class: str | None

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token_ids: Iterable[int] = (),
        bos_token_id: int | None = None,
        special_tokens: Mapping[str, str] = MappingProxyType({}),
        chat_template: str | None = None,
        tokenizer_class: str | None = None,
    ) -> None:
        """Take over `backend`; raises `TokenizerError` unless its decoder is ByteLevel."""
        kind = "none" if backend.decoder is None else type(backend.decoder).__name__
        if kind != "ByteLevel":
            raise TokenizerError(
                f"tokenizer decoder {kind} is not supported: only ByteLevel (byte-level BPE) is"
            )
        # A tokenizer.json may carry its last user's truncation and padding.
        backend.no_truncation()
        backend.no_padding()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._known_ids = frozenset(vocabulary.values())
        self.vocab_size = max(self._known_ids, default=-1) + 1
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else None
        self.bos_token_id = bos_token_id
        self.special_tokens = MappingProxyType(dict(special_tokens))
        self.chat_template = chat_template
        self.tokenizer_class = tokenizer_class
        self._bytes = [b""] * self.vocab_size
        for text, index in vocabulary.items():
            is_special = index in self.special_ids
            self._bytes[index] = text.encode() if is_special else _bytes_of_entry(text)

    @classmethod
    def from_directory(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json`, or else GPT-2's `vocab.json` and `merges.txt`.

        `tokenizer_config.json`, `special_tokens_map.json` and `generation_config.json`, where
        present and in this order, say which tokens are special, EOS and BOS; where all are
        silent, `<|endoftext|>` is both, if there is one. Tokens that they name and the
        vocabulary lacks are ignored with a warning: no id is made up. The chat template is
        `chat_template.jinja`, or else what `tokenizer_config.json` says.

        Raises `TokenizerError` naming the file that is missing or broken, or the decoder when
        it is not ByteLevel.
        """
        files = read_directory(path)
        return cls(
            files.backend,
            files.eos_token_ids,
            files.bos_token_id,
            files.special_tokens,
            files.chat_template,
            files.tokenizer_class,
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`; a special token's text inside it becomes that token.

        `add_special_tokens` adds what the tokenizer puts around a text (BOS, for instance).
        Raises `InvalidRequestError` for a lone surrogate, which no bytes can express.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"text holds a lone surrogate (U+{ord(text[error.start]):04X}) "
                f"at character {error.start}: it is not valid Unicode"
            ) from None
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The tokens' bytes, joined, as UTF-8; what is not valid becomes U+FFFD."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        joined = b"".join(self.token_bytes(index) for index in ids if index not in skipped)
        return joined.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token: a special one's text as UTF-8; empty without a token.

        Raises `InvalidRequestError` for a negative id.
        """
        if token_id < 0:
            raise InvalidRequestError(f"token id {token_id} is negative")
        return self._bytes[token_id] if token_id < self.vocab_size else b""

    def token_text(self, token_id: int) -> str:
        r"""A token's name among logprobs, which no two tokens share.

        Its text; `bytes:\xNN\xNN` when its bytes alone are not valid UTF-8; `token_id:N` for
        an id without a token.
        """
        raw = self.token_bytes(token_id)
        if token_id not in self._known_ids:
            return f"token_id:{token_id}"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def check_vocab(self, model_vocab_size: int) -> None:
        """Raise `TokenizerError` when the tokenizer has ids that the model lacks."""
        if self.vocab_size > model_vocab_size:
            raise TokenizerError(
                f"the tokenizer has ids up to {self.vocab_size - 1}, but the model's vocabulary "
                f"has {model_vocab_size} tokens: they do not belong together"
            )


def _bytes_of_entry(text: str) -> bytes:
    """Bytes of an ordinary vocabulary entry, by the rule of the library's ByteLevel decoder.

    Entries are written in the byte alphabet; added tokens are plain text, and those with any
    character outside the alphabet are taken as such.
    """
    try:
        return text.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


_TO_LATIN1 = {code: 0xFFFF for code in range(256)} | {
    ord(character): byte for character, byte in BYTE_ALPHABET.items()
}
"""The byte alphabet as code points of the bytes; what else is Latin-1 leads out of it."""

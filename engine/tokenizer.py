"""Text to token ids and back, for byte-level BPE and for SentencePiece's vocabularies.

Every token stands for exact bytes (`Tokenizer.token_bytes`); text is those bytes joined and
decoded as UTF-8. Where encoding puts a space before a text, the token that a text begins with
stands for one space less (`first_token_bytes`). The `tokenizers` library encodes, so ids are
those that Hugging Face gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from types import MappingProxyType

import tokenizers

from engine.errors import InvalidRequestError, TokenizerError
from engine.token_decoding import read_decoding
from engine.tokenizer_files import read_directory


class Tokenizer:
    """A tokenizer and the facts about its special tokens.

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
        """Take over `backend`; raises `TokenizerError` for a decoder of another kind."""
        decoding = read_decoding(backend)
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
        self._first_bytes: dict[int, bytes] = {}
        for text, index in vocabulary.items():
            if index in self.special_ids:
                self._bytes[index] = text.encode()
                continue
            self._bytes[index] = raw = decoding.entry_bytes(text)
            if (first := decoding.first_bytes(text)) != raw:
                self._first_bytes[index] = first
        byte_ids = {index for text, index in vocabulary.items() if decoding.is_byte(text)}
        self._namesakes = self._find_namesakes(byte_ids - self.special_ids)

    def _find_namesakes(self, byte_ids: Set[int]) -> frozenset[int]:
        """The ids whose bytes are another's too, but for one of each: no byte to fall back on."""
        owners: dict[bytes, int] = {}
        for index in sorted(self._known_ids, key=lambda index: (index in byte_ids, index)):
            owners.setdefault(self._bytes[index], index)
        return self._known_ids.difference(owners.values())

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The same tokenizer as the `tokenizers` library has it; leave it as it is."""
        return self._backend

    @classmethod
    def from_directory(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json`, or else GPT-2's `vocab.json` and `merges.txt`.

        `tokenizer_config.json`, `special_tokens_map.json` and `generation_config.json`, where
        present and in this order, say which tokens are special, EOS and BOS; where all are
        silent, `<|endoftext|>` is both, if there is one. Tokens that they name and the
        vocabulary lacks are ignored with a warning: no id is made up. The chat template is
        `chat_template.jinja`, or else what `tokenizer_config.json` says.

        Raises `TokenizerError` naming the file that is missing or broken, or the decoder when
        it is of another kind.
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
        shown = [index for index in ids if index not in skipped and self.token_bytes(index)]
        joined = b"".join(map(self.first_token_bytes, shown[:1]))
        joined += b"".join(map(self.token_bytes, shown[1:]))
        return joined.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token: a special one's text as UTF-8; empty without a token.

        Raises `InvalidRequestError` for a negative id.
        """
        if token_id < 0:
            raise InvalidRequestError(f"token id {token_id} is negative")
        return self._bytes[token_id] if token_id < self.vocab_size else b""

    def first_token_bytes(self, token_id: int) -> bytes:
        """Its bytes as the first with any of a text: a space that encoding put there is dropped.

        Raises as `token_bytes` does.
        """
        raw = self.token_bytes(token_id)
        return self._first_bytes.get(token_id, raw)

    def token_text(self, token_id: int) -> str:
        r"""A token's name among logprobs, which no two tokens share.

        Its text; `bytes:\xNN\xNN` when its bytes alone are not valid UTF-8; `token_id:N` for
        an id without a token, and for one whose text is another token's.
        """
        raw = self.token_bytes(token_id)
        if token_id not in self._known_ids or token_id in self._namesakes:
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

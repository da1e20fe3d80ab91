"""A tokenizer of any small size: letters, runs of letters, and pieces of characters."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import product

import tokenizers
from tokenizers import AddedToken, decoders, models

from engine.tokenizer import Tokenizer
from support.tokenizers import END_OF_TEXT, byte_alphabet

# Frequent ids (the low ones) hold what makes stop strings and characters span tokens.
_FIRST = ("a", "b", "ab", " ", *"é€", "ba", "c", "aba", "bc")


def letters_tokenizer(vocab_size: int) -> Tokenizer:
    """`vocab_size` ids, the last of them `<|endoftext|>`: special, and EOS."""
    alphabet = byte_alphabet()
    pieces: list[str] = []
    for text in _FIRST:
        raw = text.encode()
        # Characters beyond ASCII come in their bytes, one token each.
        pieces += [alphabet[byte] for byte in raw] if len(text) == 1 else [text]
    pieces += ["".join(pair) for pair in product(("", "d", "e"), "abcdefghijklmnopqrstuvwxyz")]
    unique = list(dict.fromkeys(pieces))[: vocab_size - 1]
    assert len(unique) == vocab_size - 1, f"there are not enough pieces for {vocab_size} ids"
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={piece: index for index, piece in enumerate(unique)}, merges=[])
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return Tokenizer(backend, (vocab_size - 1,))


def text_so_far(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of some tokens, specials skipped, without an incomplete character at its end."""
    raw = b"".join(
        tokenizer.token_bytes(token) for token in tokens if token not in tokenizer.special_ids
    )
    return codecs.getincrementaldecoder("utf-8")("replace").decode(raw)

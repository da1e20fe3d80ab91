"""A small byte-level BPE tokenizer, made up on the spot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from string import ascii_lowercase

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 257
"""256 bytes and the end of text."""

_WORDS = (
    " the",
    " and",
    "ing",
    " of",
    " to",
    "er",
    " in",
    "ion",
    " was",
    " that",
    " once",
    " upon",
)


def write_tokenizer(path: Path, vocab_size: int) -> Path:
    """Write `path/tokenizer.json` and `tokenizer_config.json`; returns `path`.

    Ids: the 256 bytes in GPT-2's order (printable ones first), then merges, then
    `<|endoftext|>` as the last, which is special and EOS. Any text can be encoded, and every
    byte sequence decoded. Raises `ValueError` for a size below 257 or beyond what merges
    there are (978).
    """
    alphabet = byte_alphabet()
    vocab = {character: index for index, character in enumerate(alphabet.values())}
    merges: list[tuple[str, str]] = []
    candidates = _merges(alphabet)
    while len(vocab) + 1 < vocab_size:
        pair = next(candidates, None)
        if pair is None:
            raise ValueError(f"there are not enough merges for a vocabulary of {vocab_size}")
        if "".join(pair) not in vocab:
            merges.append(pair)
            vocab["".join(pair)] = len(vocab)
    if len(vocab) + 1 != vocab_size:
        raise ValueError(f"a byte-level vocabulary needs {MIN_VOCAB_SIZE} ids, not {vocab_size}")
    end_id = vocab_size - 1
    vocab[END_OF_TEXT] = end_id
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": end_id,
                "content": END_OF_TEXT,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [" ".join(pair) for pair in merges],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
    }
    path.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        (path / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def byte_alphabet() -> dict[int, str]:
    """Byte → the printable character that stands for it, in the order of GPT-2's ids.

    `bytes_to_unicode` of GPT-2's encoder.py: printable Latin-1 stands for itself, the other
    bytes for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet.update((byte, chr(256 + index)) for index, byte in enumerate(others))
    return alphabet


def _merges(alphabet: dict[int, str]) -> Iterator[tuple[str, str]]:
    """Pairs to merge, each of two tokens that exist by then: words, then pairs of letters."""
    for word in _WORDS:
        characters = [alphabet[byte] for byte in word.encode()]
        for length in range(1, len(characters)):
            yield "".join(characters[:length]), characters[length]
    yield from product(ascii_lowercase, ascii_lowercase)
    yield from product(alphabet[ord(" ")], ascii_lowercase)

"""A made-up byte-level BPE vocabulary of any size: bytes, then words of up to three syllables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine.config import EngineConfig
from engine.documents import END_OF_TEXT
from engine.errors import ConfigError
from engine.token_decoding import BYTE_ALPHABET

_NUM_BYTES = 256
_CONSONANTS = "tnrsldmkpbgfhvwjcz"
_VOWELS = "aeiou"
_SPACE = next(character for character, byte in BYTE_ALPHABET.items() if byte == ord(" "))


def frequent_ids(vocab_size: int) -> range:
    """The ids that the model writes: words of the draft vocabulary, no single bytes, no EOS."""
    return range(_NUM_BYTES, min(EngineConfig().draft_vocab_size, vocab_size - 1))


def write_vocabulary(directory: Path, vocab_size: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` with exactly `vocab_size` tokens.

    Ids: the bytes in GPT-2's order, merges in the order in which encoding applies them, the end
    of text. Every text can be encoded and comes back unchanged. Raises `ConfigError` for a size
    that leaves no room for a word, and for one beyond the words that there are (745,380).
    """
    num_merges = vocab_size - _NUM_BYTES - 1
    merges = list(islice(_merges(), max(num_merges, 0)))
    if not merges or len(merges) != num_merges:
        raise ConfigError(f"a vocabulary of {vocab_size} tokens cannot be made up")
    tokens = [*BYTE_ALPHABET, *(left + right for left, right in merges), END_OF_TEXT]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    text = json.dumps(config, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs to merge, each of tokens that exist by then: shorter words first."""
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    spaced = [_SPACE + syllable for syllable in syllables]
    yield from ((syllable[0], syllable[1]) for syllable in syllables)
    yield from ((_SPACE, syllable) for syllable in syllables)
    yield from ((first, second) for second in syllables for first in spaced)
    yield from ((first, second) for second in syllables for first in syllables)
    for third in syllables:
        for second in syllables:
            yield from ((first + second, third) for first in spaced)

"""Which tokens are frequent: the draft head scores only those, and so costs a part of the full one.

Counted frequencies come first: `draft_vocab.json` beside the weights, `{"token_ids": [...]}` with
the most frequent first, as `bitskip draft-vocab` writes it. Tokens that it does not
list follow in the order that the vocabulary's making suggests (`likely_order`). The full head
verifies drafts, so a bad order costs time and never a token.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders

from engine.errors import CheckpointError
from engine.token_decoding import BYTE_ALPHABET, read_decoding
from engine.tokenizer import Tokenizer

DRAFT_VOCAB_FILE = "draft_vocab.json"
LINE_END = "<0x0A>"


def draft_ranking(path: Path, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """All `vocab_size` ids of the checkpoint in the directory `path`, frequent ones first.

    Raises `CheckpointError` for a `draft_vocab.json` that cannot be read or names no such ids.
    """
    counted = _read_counted(path / DRAFT_VOCAB_FILE, vocab_size)
    likely = likely_order(tokenizer.library)
    return list(dict.fromkeys([*counted, *likely, *range(vocab_size)]))


def likely_order(library: tokenizers.Tokenizer) -> list[int]:
    """The ids of a vocabulary, those first that its making suggests are frequent.

    BPE merges the most frequent pair first, so merges' results come in their order. A token is
    at least as frequent as what it was first merged into, so it comes before that; and single
    characters are numbered by frequency, so those of lower ids come before it too. (Byte-level
    BPE numbers all tokens like this, SentencePiece puts characters behind all merges.) A
    unigram model tells the tokens' probabilities. Other vocabularies stay as they are numbered.
    Raises `TokenizerError` as `read_decoding` does.
    """
    vocabulary = library.get_vocab(with_added_tokens=True)
    ids = sorted(vocabulary.values())
    if _is_numbered_in_order(library, vocabulary):
        return ids
    # What pickling makes of it is the JSON of tokenizer.json's "model".
    model = json.loads(library.model.__getstate__())
    if model["type"] == "BPE":
        is_byte = read_decoding(library).is_byte
        bytes_ = {index for text, index in vocabulary.items() if is_byte(text)}
        return list(dict.fromkeys([*_by_merges(model, bytes_), *ids]))
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        return list(dict.fromkeys([*sorted(range(len(scores)), key=lambda i: -scores[i]), *ids]))
    return ids


def count_tokens(tokenizer: Tokenizer, documents: Iterable[str]) -> Counter[int]:
    """How often each id occurs in documents."""
    counts: Counter[int] = Counter()
    for document in documents:
        counts.update(tokenizer.encode(document, add_special_tokens=False))
    return counts


def save_draft_vocab(path: Path, token_ids: Sequence[int]) -> None:
    """Write `draft_vocab.json` into a checkpoint's directory, all at once or not at all.

    Raises `CheckpointError` when that cannot be done.
    """
    file = path / DRAFT_VOCAB_FILE
    staging = file.with_name(f".{file.name}.partial")
    try:
        staging.write_text(json.dumps({"token_ids": list(token_ids)}) + "\n", encoding="utf-8")
        os.replace(staging, file)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise CheckpointError(f"{file}: cannot be written ({error.strerror})") from error


def _is_numbered_in_order(library: tokenizers.Tokenizer, vocabulary: Mapping[str, int]) -> bool:
    """Whether it is byte-level BPE as it is always trained: the bytes, and then merges by rank."""
    if not isinstance(library.decoder, decoders.ByteLevel):
        return False
    of_bytes = [vocabulary.get(character, len(vocabulary)) for character in BYTE_ALPHABET]
    return max(of_bytes) < len(of_bytes) + len(library.get_added_tokens_decoder())


def _by_merges(model: Mapping[str, Any], fallback: Set[int]) -> Iterator[int]:
    """Ids in the order that the merges of a BPE suggest; some come several times, some never.

    Of the bytes to fall back on, the line's end is frequent where it has no other token.
    """
    vocabulary: Mapping[str, int] = model["vocab"]
    prefix = model["continuing_subword_prefix"] or ""
    merges = [(left, right, left + right.removeprefix(prefix)) for left, right in model["merges"]]
    merged = {result for _, _, result in merges}
    characters = sorted(
        index for text, index in vocabulary.items() if text not in merged and index not in fallback
    )
    if vocabulary.get(LINE_END) in fallback:
        yield vocabulary[LINE_END]
    num_reached = 0
    for left, right, result in merges:
        for part in (left, right):
            if part not in merged:
                reach = bisect_right(characters, vocabulary[part])
                yield from characters[num_reached:reach]
                num_reached = max(num_reached, reach)
            yield vocabulary[part]
        yield vocabulary[result]
    yield from characters
    yield from sorted(fallback)


def _read_counted(file: Path, vocab_size: int) -> list[int]:
    if not file.exists():
        return []
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))["token_ids"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error!r})") from error
    if not isinstance(ids, list) or not all(
        type(index) is int and 0 <= index < vocab_size for index in ids
    ):
        raise CheckpointError(f"{file}: token_ids must be ids below {vocab_size}")
    return ids

"""Text files to a shuffled token stream, with the tokenizer trained on the same text.

A data file holds documents separated by a line with only `<|endoftext|>`; `.xz` is read too.
A run's folder gets `tokenizer.json`, `stream.npy` and `heldout.npy` (tokens), `heldout.txt`, and
`data.json`, which says what they were made from.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.documents import END_OF_TEXT, read_documents
from engine.errors import ConfigError

logger = logging.getLogger(__name__)

MIN_VOCAB_SIZE = 257
"""256 bytes and the end of text."""
MAX_VOCAB_SIZE = 1 << 16
"""Of a new tokenizer."""

Stream = NDArray[np.unsignedinteger[Any]]
"""Token ids, two bytes each where the vocabulary allows."""

_WORD = re.compile(r"[a-z']+")


@dataclass(frozen=True, slots=True)
class DataSource:
    """One file, how often its documents are repeated, and how easy they must be."""

    path: Path
    repeats: int = 1
    min_easy_share: float = 0.0
    """Keep documents in which this share of the words occurs twice or more in the first source."""

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """Read `FILE[:REPEATS[:MIN_EASY_SHARE]]`; raises `ConfigError` when it is malformed."""
        parts = text.split(":")
        try:
            repeats = int(parts[1]) if len(parts) > 1 else 1
            share = float(parts[2]) if len(parts) > 2 else 0.0
        except ValueError:
            raise ConfigError(f"data {text!r} is not FILE[:REPEATS[:MIN_EASY_SHARE]]") from None
        if len(parts) > 3 or repeats < 1 or not 0.0 <= share <= 1.0:
            raise ConfigError(f"data {text!r} is not FILE[:REPEATS[:MIN_EASY_SHARE]]")
        return cls(Path(parts[0]), repeats, share)


def easy_words(documents: Iterable[str]) -> frozenset[str]:
    """Words that occur at least twice."""
    counts = Counter(word for document in documents for word in _WORD.findall(document.lower()))
    return frozenset(word for word, count in counts.items() if count >= 2)


def easy_share(document: str, vocabulary: frozenset[str]) -> float:
    """Share of a document's words that lie in `vocabulary`; 0 for a document without words."""
    words = _WORD.findall(document.lower())
    return sum(word in vocabulary for word in words) / len(words) if words else 0.0


def load_sources(
    sources: Sequence[DataSource], num_heldout: int, seed: int
) -> tuple[list[str], list[str]]:
    """(training documents in shuffled order with repeats, held-out documents).

    The held-out documents come from the first source; a copy of one, wherever it is found, is
    left out of training. Raises `ConfigError` when a file or what is asked of it leaves nothing.
    """
    if sources[0].min_easy_share > 0:
        raise ConfigError("the first data file says which words are easy: it cannot be filtered")
    rng = random.Random(seed)
    first = read_documents(sources[0].path)
    rng.shuffle(first)
    if num_heldout >= len(first):
        raise ConfigError(
            f"{sources[0].path} has only {len(first)} documents, and {num_heldout} of the first "
            "file are to be kept out of training"
        )
    heldout = first[:num_heldout]
    hidden = frozenset(heldout)
    first = [document for document in first[num_heldout:] if document not in hidden]
    if not first:
        raise ConfigError(f"{sources[0].path} holds nothing but copies of held-out documents")
    vocabulary = easy_words(first)
    training = first * sources[0].repeats
    for source in sources[1:]:
        documents = [d for d in read_documents(source.path) if d not in hidden]
        if source.min_easy_share > 0:
            documents = [d for d in documents if easy_share(d, vocabulary) >= source.min_easy_share]
        if not documents:
            raise ConfigError(f"no document of {source.path} is left for training")
        training += documents * source.repeats
    rng.shuffle(training)
    return training, heldout


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with GPT-2's pre-tokeniser; ids in merge order, end of text last.

    Raises `ConfigError` for a size outside 257..65,536, or one that the text has no merges for.
    """
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(f"a vocabulary must have {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE} tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ConfigError(f"too little text for a vocabulary of {vocab_size} tokens")
    return tokenizer


def encode_stream(
    tokenizer: Tokenizer, documents: Sequence[str], end_token_id: int | None = None
) -> Stream:
    """All documents as one token stream, each followed by the end-of-text token.

    Raises `ConfigError` where the latter is not given and the tokenizer has no `<|endoftext|>`.
    """
    end = tokenizer.token_to_id(END_OF_TEXT) if end_token_id is None else end_token_id
    if end is None:
        raise ConfigError(f"the tokenizer has no {END_OF_TEXT}")
    wide = tokenizer.get_vocab_size() > 1 << 16
    ids = array("I" if wide else "H")
    for start in range(0, len(documents), 1024):
        part = list(documents[start : start + 1024])
        for encoding in tokenizer.encode_batch(part, add_special_tokens=False):
            ids.extend(encoding.ids)
            ids.append(end)
    return np.asarray(ids, dtype=np.uint32 if wide else np.uint16)


def window_batch(stream: Stream, offset: int, batch_size: int, context: int) -> NDArray[np.int64]:
    """`batch_size` × (`context` + 1) tokens from `offset` on; the stream wraps around."""
    starts = offset + context * np.arange(batch_size)
    index = (starts[:, None] + np.arange(context + 1)) % len(stream)
    return stream[index].astype(np.int64)


def prepare_data(
    out: Path,
    sources: Sequence[DataSource],
    vocab_size: int,
    num_heldout: int,
    seed: int,
    tokenizer_file: Path | None = None,
    end_token_id: int | None = None,
) -> None:
    """Write a run's data files into `out`, unless they are there.

    A tokenizer of `vocab_size` tokens is trained, or a given one copied, whose end-of-text token
    may be given too. A run that resumes need not name its sources. Raises `ConfigError` when a
    new run has none, or when those that are named are not what the run's data was made from.
    """
    wanted: dict[str, Any] = {
        "sources": [[str(s.path), s.repeats, s.min_easy_share] for s in sources],
        "vocab_size": vocab_size,
        "num_heldout": num_heldout,
        "seed": seed,
    }
    if tokenizer_file is not None:
        wanted["tokenizer"] = str(tokenizer_file)
    description = out / "data.json"
    if description.exists():
        found = json.loads(description.read_text(encoding="utf-8"))
        if sources and found != wanted:
            raise ConfigError(f"{out} has data made from other choices: see {description}")
        return
    if not sources:
        raise ConfigError("a new run needs data")
    training, heldout = load_sources(sources, num_heldout, seed)
    if tokenizer_file is None:
        tokenizer = train_tokenizer(training, vocab_size)
    else:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    stream = encode_stream(tokenizer, training, end_token_id)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "heldout.txt").write_text(
        "".join(f"{document}\n{END_OF_TEXT}\n" for document in heldout), encoding="utf-8"
    )
    np.save(out / "heldout.npy", encode_stream(tokenizer, heldout, end_token_id))
    np.save(out / "stream.npy", stream)
    # Last, and at once: its presence says that the others are complete.
    partial = description.with_suffix(".partial")
    partial.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    os.replace(partial, description)
    logger.info("%d documents, %d tokens, %d held out", len(training), len(stream), len(heldout))

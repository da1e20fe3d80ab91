"""GPT-2's own tokenizer, from the merges that lie among the tests' data."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

from support.tokenizers import END_OF_TEXT, byte_alphabet

VOCAB_SIZE = 50257
END_ID = VOCAB_SIZE - 1
_MERGES = Path(__file__).resolve().parents[1] / "data" / "gpt2_merges.txt.xz"


def write_gpt2_tokenizer(path: Path) -> Path:
    """Write `vocab.json` and `merges.txt` into the directory `path`, and return it."""
    merges = lzma.decompress(_MERGES.read_bytes()).decode()
    results = [line.replace(" ", "") for line in merges.splitlines()[1:]]
    entries = [*byte_alphabet().values(), *results, END_OF_TEXT]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    assert len(vocabulary) == VOCAB_SIZE
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (path / "merges.txt").write_text(merges, encoding="utf-8")
    return path

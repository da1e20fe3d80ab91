"""The made-up tokenizer loads, and encodes any text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from support.tokenizers import END_OF_TEXT, write_tokenizer

TEXT = " once upon a time, é 世界 🙂\n\tthe string\x00"


@pytest.mark.parametrize("vocab_size", [257, 300, 978])
def test_any_text_comes_back(tmp_path: Path, vocab_size: int) -> None:
    path = write_tokenizer(tmp_path / "new", vocab_size)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == vocab_size
    ids = tokenizer.encode(TEXT).ids
    assert tokenizer.decode(ids) == TEXT
    assert (len(ids) < len(TEXT.encode())) == (vocab_size > 257)
    assert tokenizer.encode("a" + END_OF_TEXT).ids[-1] == vocab_size - 1


@pytest.mark.parametrize("vocab_size", [256, 979])
def test_impossible_sizes_are_refused(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        write_tokenizer(tmp_path, vocab_size)

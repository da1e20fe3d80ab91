"""The made-up tokenizer: exactly as large as asked for, and nothing is lost in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.evaluation.synthetic.vocabulary import frequent_ids, write_vocabulary
from engine.tokenizer import Tokenizer

SIZES = (258, 2048, 50_257)


@pytest.fixture(scope="module", params=SIZES)
def tokenizer(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(path, request.param)
    made = Tokenizer.from_directory(path)
    assert made.vocab_size == request.param
    return made


def test_every_id_has_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    every = range(tokenizer.vocab_size)
    tokens = {tokenizer.token_bytes(index) for index in every}
    assert len(tokens) == tokenizer.vocab_size and b"" not in tokens
    assert all(len(tokenizer.token_bytes(index)) == 1 for index in range(256))
    assert tokenizer.eos_token_id == tokenizer.vocab_size - 1
    assert tokenizer.special_ids == {tokenizer.vocab_size - 1}


def test_every_word_is_one_token(tokenizer: Tokenizer) -> None:
    for index in range(256, tokenizer.vocab_size - 1):
        assert tokenizer.encode(tokenizer.decode([index])) == [index]


@given(text=st.text())
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_frequent_ids_are_words_of_the_draft_vocabulary() -> None:
    assert frequent_ids(50_257) == range(256, 8192)
    assert frequent_ids(2048) == range(256, 2047)


@pytest.mark.parametrize("size", [0, 257, 256 + 745_380 + 2])
def test_sizes_that_cannot_be_made_up_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match=f"vocabulary of {size} tokens"):
        write_vocabulary(tmp_path, size)
    assert not list(tmp_path.iterdir())

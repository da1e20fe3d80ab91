"""SentencePiece's vocabularies against the library's and SentencePiece's own decoding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.detokenizer import Detokenizer
from engine.errors import TokenizerError
from engine.tokenizer import Tokenizer
from support.sentence_pieces import (
    BOS_ID,
    EOS_ID,
    FIRST_BYTE_ID,
    FORMS,
    UNK_ID,
    VOCAB_SIZE,
    unigram_tokenizer,
    write_converted,
    write_sentencepiece_model,
)

texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("the cat sat\n\t\0▁ 日本猫é😀👩‍👧☃e\u0301\ufeff\ufffd"),
    ),
    max_size=40,
).filter(lambda text: not any(special in text for special in ("<unk>", "<s>", "</s>")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with SentencePiece's own form alone."""
    return write_sentencepiece_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(source: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))


@pytest.fixture(scope="module", params=FORMS)
def path(
    source: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_converted(tmp_path_factory.mktemp("converted"), source, request.param)


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_directory(path)


@pytest.fixture(scope="module")
def library(path: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))


def streamed(
    tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None, skip: bool = True
) -> list[str]:
    """Each token's text, released as early as may be."""
    detokenizer = Detokenizer(tokenizer, (), False, skip, prompt or ())
    texts: list[str] = []
    for index in ids:
        detokenizer.push(index)
        texts += detokenizer.release(final=False)
    return texts + detokenizer.release(final=True)


class TestFacts:
    def test_special_tokens(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.vocab_size == VOCAB_SIZE
        assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (BOS_ID, (EOS_ID,))
        assert tokenizer.special_ids == {UNK_ID, BOS_ID, EOS_ID}
        assert tokenizer.encode("the")[0] == BOS_ID

    def test_tokens_stand_for_their_bytes(self, tokenizer: Tokenizer) -> None:
        for byte in range(256):
            assert tokenizer.token_bytes(FIRST_BYTE_ID + byte) == bytes([byte])
        the = tokenizer.encode("the", add_special_tokens=False)[0]
        assert tokenizer.token_bytes(the) == b" the"
        assert tokenizer.first_token_bytes(the) == b"the"
        assert tokenizer.token_bytes(BOS_ID) == tokenizer.first_token_bytes(BOS_ID) == b"<s>"

    def test_no_two_tokens_share_a_name(self, tokenizer: Tokenizer) -> None:
        names = [tokenizer.token_text(index) for index in range(VOCAB_SIZE)]
        assert len(set(names)) == VOCAB_SIZE
        # A byte to fall back on leaves its name to the piece with that very text.
        assert names[FIRST_BYTE_ID + 0x61] == f"token_id:{FIRST_BYTE_ID + 0x61}"
        assert names.index("a") > FIRST_BYTE_ID + 0xFF
        assert names[FIRST_BYTE_ID + 0x0A] == "\n"
        assert names[FIRST_BYTE_ID + 0xE2] == r"bytes:\xe2"


class TestText:
    @settings(deadline=None, max_examples=200)
    @given(text=texts)
    @example(text="")
    @example(text=" ")
    @example(text="  two before and after  ")
    @example(text="\nline")
    def test_round_trip(
        self,
        tokenizer: Tokenizer,
        library: tokenizers.Tokenizer,
        reference: sentencepiece.SentencePieceProcessor,
        text: str,
    ) -> None:
        ids = tokenizer.encode(text)
        decoded = tokenizer.decode(ids)
        assert decoded == library.decode(ids) == "".join(streamed(tokenizer, ids))
        if library.pre_tokenizer is None:
            # Prepend marks every text's beginning, so that nothing is lost but its own marks.
            assert decoded == text.replace("▁", " ")
        if "\0" not in text and library.pre_tokenizer is None:
            assert reference.decode(ids) == decoded

    @settings(deadline=None, max_examples=200)
    @given(ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=12), skip=st.booleans())
    @example(ids=[BOS_ID, EOS_ID], skip=False)
    def test_any_ids_decode_as_the_library_does(
        self, tokenizer: Tokenizer, library: tokenizers.Tokenizer, ids: list[int], skip: bool
    ) -> None:
        decoded = tokenizer.decode(ids, skip)
        assert decoded == "".join(streamed(tokenizer, ids, skip=skip))
        if "\ufffd" not in decoded:
            assert decoded == library.decode(ids, skip_special_tokens=skip)
        else:
            # There the library gives up all of a run of bytes, characters in it included.
            assert "\ufffd" in library.decode(ids, skip_special_tokens=skip)

    @settings(deadline=None, max_examples=200)
    @given(text=texts, cut=st.integers(0, 40))
    @example(text="the cat", cut=0)
    @example(text="the cat", cut=1)
    @example(text="☃ the", cut=2)
    def test_an_answer_is_what_the_whole_adds_to_the_prompt(
        self, tokenizer: Tokenizer, text: str, cut: int
    ) -> None:
        ids = tokenizer.encode(text)
        prompt, answer = ids[:cut], ids[cut:]
        before, whole = tokenizer.decode(prompt), tokenizer.decode(ids)
        if "\ufffd" not in before:
            added = "".join(streamed(tokenizer, answer, prompt))
            assert before + added == whole

    @settings(deadline=None, max_examples=200)
    @given(text=texts)
    def test_no_broken_character_is_released(self, tokenizer: Tokenizer, text: str) -> None:
        if "\ufffd" not in text:
            released = streamed(tokenizer, tokenizer.encode(text))
            assert "\ufffd" not in "".join(released)

    def test_spaces_of_first_tokens(self, tokenizer: Tokenizer) -> None:
        the, cat = (tokenizer.encode(word, add_special_tokens=False) for word in ("the", "cat"))
        assert streamed(tokenizer, [BOS_ID, *the, *the]) == ["", "the", " the"]
        assert streamed(tokenizer, the, prompt=[BOS_ID]) == ["the"]
        assert streamed(tokenizer, the, prompt=[BOS_ID, *cat]) == [" the"]
        # Shown, BOS is text, and the space is no longer the text's first character.
        assert streamed(tokenizer, [BOS_ID, *the], skip=False) == ["<s>", " the"]
        assert streamed(tokenizer, the, prompt=[BOS_ID], skip=False) == [" the"]

    def test_a_character_in_bytes_comes_whole(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("☃!", add_special_tokens=False)
        snowman = ids[1:4]
        assert [tokenizer.token_bytes(index) for index in snowman] == [b"\xe2", b"\x98", b"\x83"]
        assert streamed(tokenizer, snowman, prompt=ids[:1]) == ["", "", "☃"]
        assert streamed(tokenizer, snowman[:2], prompt=ids[:1]) == ["", "\ufffd"]

    @pytest.mark.parametrize("stop", ["☃", "☃\n", " ☃", "d ☃", "\n"])
    def test_stop_strings_across_bytes_and_spaces(self, tokenizer: Tokenizer, stop: str) -> None:
        text = "the old ☃\nsat"
        detokenizer = Detokenizer(tokenizer, (stop,), False, True)
        released: list[str] = []
        matched: list[str | None] = []
        for index in tokenizer.encode(text):
            matched.append(detokenizer.push(index))
            released += detokenizer.release(final=False)
        assert [match for match in matched if match] == [stop]
        assert "".join(released) == text[: text.index(stop)]

    def test_a_stop_string_at_the_start_has_no_space(self, tokenizer: Tokenizer) -> None:
        detokenizer = Detokenizer(tokenizer, ("the",), False, True, [BOS_ID])
        (the,) = tokenizer.encode("the", add_special_tokens=False)
        assert detokenizer.push(the) == "the"
        assert detokenizer.release(final=True) == [""]


@pytest.fixture(scope="module")
def unigram() -> tokenizers.Tokenizer:
    return unigram_tokenizer()


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 399), max_size=10), skip=st.booleans())
def test_any_ids_of_a_unigram_model_decode_as_the_library_does(
    unigram: tokenizers.Tokenizer, ids: list[int], skip: bool
) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(unigram.to_str()))
    decoded = tokenizer.decode(ids, skip)
    assert decoded == unigram.decode(ids, skip_special_tokens=skip)
    assert "".join(streamed(tokenizer, ids, skip=skip)) == decoded


class TestSentencePiecesOwnForm:
    def test_is_refused_with_a_remedy_that_works(
        self, source: Path, reference: sentencepiece.SentencePieceProcessor
    ) -> None:
        with pytest.raises(TokenizerError, match=r"alone \(tokenizer\.model\)") as caught:
            Tokenizer.from_directory(source)
        program = str(caught.value).partition("python -c '")[2].removesuffix("'")
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        try:
            tokenizer = Tokenizer.from_directory(source)
            text = "Once upon a time, 日本 ☃\n"
            assert tokenizer.encode(text) == [BOS_ID, *reference.encode(text)]
            assert tokenizer.decode(tokenizer.encode(text)) == text
        finally:
            (source / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        ({"type": "Strip", "content": " ", "start": 0, "stop": 1}, "Fuse, Strip"),
        ({"type": "Strip", "content": "_", "start": 1, "stop": 0}, "Fuse, Strip"),
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "Fuse, WordPiece"),
    ],
)
def test_other_decoders_are_named(
    path: Path, tmp_path: Path, decoder: dict[str, object], name: str
) -> None:
    raw = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    raw["decoder"]["decoders"][-1] = decoder
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(TokenizerError, match=rf"Sequence\(Replace, ByteFallback, {name}\) is not"):
        Tokenizer.from_directory(tmp_path)

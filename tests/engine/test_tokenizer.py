from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from engine.errors import InvalidRequestError, TokenizerError
from engine.token_decoding import BYTE_ALPHABET
from engine.tokenizer import Tokenizer

EOS = "<|endoftext|>"
EOS_ID = 400

texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("the cat sat\n\r\t\0 日本語猫é😀👩‍👧🇩🇪e\u0301\u0327\ufeff\ufffd"),
    ),
    max_size=60,
)


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def path(tokenizer_path: Path, tmp_path: Path) -> Path:
    """A directory of the test's own with the small tokenizer's `tokenizer.json`."""
    shutil.copy(tokenizer_path / "tokenizer.json", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def gpt2_files(bpe: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small tokenizer in GPT-2's form: `<|endoftext|>` is the vocabulary's last entry."""
    path = tmp_path_factory.mktemp("gpt2")
    bpe.model.save(str(path))
    vocabulary = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
    assert EOS not in vocabulary
    write(path / "vocab.json", vocabulary | {EOS: EOS_ID})
    return path


@pytest.fixture
def gpt2_path(gpt2_files: Path, tmp_path: Path) -> Path:
    """A copy of them for the test to change."""
    shutil.copytree(gpt2_files, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def gpt2(gpt2_files: Path) -> Tokenizer:
    return Tokenizer.from_directory(gpt2_files)


class TestText:
    @settings(deadline=None)
    @given(texts)
    @example("")
    @example("\0")
    @example("\n\n  \r\n")
    @example(f"a{EOS}{EOS} b")
    def test_round_trip(self, tokenizer: Tokenizer, text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()

    @settings(deadline=None)
    @given(texts, st.data())
    def test_any_cut_decodes_as_the_library_does(
        self, tokenizer: Tokenizer, bpe: tokenizers.Tokenizer, text: str, data: st.DataObject
    ) -> None:
        ids = tokenizer.encode(text)
        start = data.draw(st.integers(0, len(ids)))
        cut = ids[start : data.draw(st.integers(start, len(ids)))]
        expected = b"".join(map(tokenizer.token_bytes, cut)).decode("utf-8", "replace")
        assert tokenizer.decode(cut, skip_special_tokens=False) == expected
        assert bpe.decode(cut, skip_special_tokens=False) == expected

    @settings(deadline=None)
    @given(st.lists(st.integers(0, EOS_ID), max_size=12), st.booleans())
    def test_any_ids_decode_as_the_library_does(
        self, tokenizer: Tokenizer, bpe: tokenizers.Tokenizer, ids: list[int], skip: bool
    ) -> None:
        assert tokenizer.decode(ids, skip) == bpe.decode(ids, skip_special_tokens=skip)

    def test_special_text_in_a_prompt_is_the_special_token(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode(f"the cat{EOS}the")
        assert ids == [*tokenizer.encode("the cat"), EOS_ID, *tokenizer.encode("the")]
        assert tokenizer.decode(ids) == "the catthe"
        assert tokenizer.decode(ids, skip_special_tokens=False) == f"the cat{EOS}the"

    @pytest.mark.parametrize("text", ["abc\ud83d", "\udc00", "\ud83d\ude00"])
    def test_lone_surrogates_are_refused(self, tokenizer: Tokenizer, text: str) -> None:
        with pytest.raises(InvalidRequestError, match=r"lone surrogate \(U\+D[8C]"):
            tokenizer.encode(text)


class TestTokens:
    def test_the_byte_alphabet_is_the_library_s(self) -> None:
        assert set(BYTE_ALPHABET) == set(pre_tokenizers.ByteLevel.alphabet())
        assert sorted(BYTE_ALPHABET.values()) == list(range(256))
        assert bytes(BYTE_ALPHABET[character] for character in "ĠaĊĀ¡ÿŃ") == b" a\n\0\xa1\xff\xad"

    def test_vocabulary_covers_every_byte(self, tokenizer: Tokenizer) -> None:
        pieces = {tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)}
        assert {bytes([byte]) for byte in range(256)} <= pieces
        assert len(pieces) == tokenizer.vocab_size == EOS_ID + 1

    def test_token_text(self, tokenizer: Tokenizer) -> None:
        by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
        assert tokenizer.token_text(by_bytes[b" the"]) == " the"
        assert tokenizer.token_text(by_bytes[b"\0"]) == "\0"
        assert tokenizer.token_text(by_bytes[b"\xf0"]) == r"bytes:\xf0"
        assert tokenizer.token_text(by_bytes["é".encode()]) == "é"
        partial = next(raw for raw in by_bytes if raw.startswith(b"\xf0\x9f") and len(raw) < 4)
        expected = "bytes:" + "".join(f"\\x{byte:02x}" for byte in partial)
        assert tokenizer.token_text(by_bytes[partial]) == expected
        assert tokenizer.token_text(EOS_ID) == EOS

    def test_no_two_tokens_share_a_text(self, tokenizer: Tokenizer) -> None:
        ids = range(tokenizer.vocab_size + 100)
        assert len({tokenizer.token_text(index) for index in ids}) == len(ids)

    def test_ids_without_a_token_have_no_bytes(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.token_bytes(EOS_ID + 1) == tokenizer.token_bytes(1 << 40) == b""
        assert tokenizer.token_text(EOS_ID + 1) == "token_id:401"
        the = tokenizer.encode("the")
        assert tokenizer.decode([*the, 999, *the]) == "thethe"

    def test_negative_ids_are_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(InvalidRequestError, match="token id -1 is negative"):
            tokenizer.decode([-1])

    def test_added_tokens(self, path: Path) -> None:
        backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        backend.add_tokens(["  ", "日x", "abc"])
        backend.add_special_tokens(["<é>"])
        backend.save(str(path / "tokenizer.json"))
        tokenizer = Tokenizer.from_directory(path)
        texts = ["  ", "日x", "abc", "<é>"]
        assert [tokenizer.token_bytes(i) for i in range(401, 405)] == [t.encode() for t in texts]
        assert [tokenizer.encode(text) for text in texts] == [[401], [402], [403], [404]]
        assert tokenizer.special_ids == {EOS_ID, 404}
        # The library would read the special token in the byte alphabet and break its é.
        assert tokenizer.decode([401, 404, 402], skip_special_tokens=False) == "  <é>日x"

    def test_check_vocab(self, tokenizer: Tokenizer) -> None:
        tokenizer.check_vocab(401)
        tokenizer.check_vocab(512)
        with pytest.raises(TokenizerError, match=r"ids up to 400, .* has 400 tokens"):
            tokenizer.check_vocab(400)


class TestSpecialTokens:
    def test_end_of_text_is_eos_and_bos_where_no_file_says(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.eos_token_id == tokenizer.bos_token_id == EOS_ID
        assert tokenizer.eos_token_ids == (EOS_ID,)
        assert tokenizer.special_ids == {EOS_ID}

    def test_an_explicit_null_means_none(self, path: Path) -> None:
        write(path / "tokenizer_config.json", {"bos_token": None, "eos_token": EOS})
        tokenizer = Tokenizer.from_directory(path)
        assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (EOS_ID, None)

    def test_no_special_token_at_all(self, path: Path) -> None:
        raw = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        write(path / "tokenizer.json", raw | {"added_tokens": []})
        tokenizer = Tokenizer.from_directory(path)
        assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (None, None)
        assert (tokenizer.vocab_size, tokenizer.special_ids) == (400, frozenset())

    def test_named_tokens_become_special(self, path: Path) -> None:
        write(path / "special_tokens_map.json", {"eos_token": {"content": "Q"}})
        write(path / "tokenizer_config.json", {"additional_special_tokens": ["z"]})
        tokenizer = Tokenizer.from_directory(path)
        (eos,), (other,) = tokenizer.encode("Q"), tokenizer.encode("z")
        assert tokenizer.eos_token_id == eos
        assert tokenizer.special_ids == {EOS_ID, eos, other}
        assert tokenizer.decode(tokenizer.encode("a Quiz")) == "a ui"
        assert tokenizer.bos_token_id == EOS_ID

    def test_tokenizer_config_goes_before_special_tokens_map(self, path: Path) -> None:
        write(path / "special_tokens_map.json", {"eos_token": "a", "bos_token": "b"})
        write(path / "tokenizer_config.json", {"eos_token": "c"})
        tokenizer = Tokenizer.from_directory(path)
        assert tokenizer.eos_token_id == tokenizer.encode("c")[0]
        assert tokenizer.bos_token_id == tokenizer.encode("b")[0]

    def test_generation_config_adds_eos_ids(self, path: Path) -> None:
        write(path / "generation_config.json", {"eos_token_id": [7, EOS_ID], "bos_token_id": 5})
        tokenizer = Tokenizer.from_directory(path)
        assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (7, 5)
        write(path / "tokenizer_config.json", {"eos_token": EOS})
        assert Tokenizer.from_directory(path).eos_token_ids == (EOS_ID, 7)

    def test_a_named_token_that_is_missing_gets_no_id(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write(path / "tokenizer_config.json", {"pad_token": "[PAD]", "eos_token": "</s>"})
        with caplog.at_level(logging.WARNING):
            tokenizer = Tokenizer.from_directory(path)
        assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (401, None)
        assert "'[PAD]' is not in the vocabulary" in caplog.text
        assert "'</s>' is not in the vocabulary" in caplog.text

    def test_listed_tokens_are_added_under_their_ids(self, path: Path) -> None:
        listed = {
            "400": {"content": EOS, "special": True},
            "402": {"content": "<b>", "special": False},
            "401": {"content": "<a>", "special": True},
        }
        write(path / "tokenizer_config.json", {"added_tokens_decoder": listed})
        tokenizer = Tokenizer.from_directory(path)
        assert tokenizer.encode("<a><b>") == [401, 402]
        assert tokenizer.special_ids == {400, 401}

    def test_listed_tokens_are_special_if_either_file_says_so(self, path: Path) -> None:
        """As transformers has it."""
        file = path / "tokenizer.json"
        raw = json.loads(file.read_text(encoding="utf-8"))
        end = raw["added_tokens"][0]
        raw["added_tokens"] += [
            end | {"id": 401, "content": "<a>", "special": False},
            end | {"id": 402, "content": "<b>", "special": True},
        ]
        write(file, raw)
        listed = {
            "401": {"content": "<a>", "special": True},
            "402": {"content": "<b>", "special": False},
        }
        write(path / "tokenizer_config.json", {"added_tokens_decoder": listed})
        tokenizer = Tokenizer.from_directory(path)
        assert tokenizer.special_ids == {400, 401, 402}
        assert tokenizer.decode(tokenizer.encode("x<a><b>y")) == "xy"

    def test_listed_tokens_must_get_their_ids(self, path: Path) -> None:
        listed = {"450": {"content": "<a>"}}
        write(path / "tokenizer_config.json", {"added_tokens_decoder": listed})
        with pytest.raises(TokenizerError, match=r"tokenizer_config.json: .*'<a>' the id 450"):
            Tokenizer.from_directory(path)

    def test_the_template_s_tokens_are_optional(self, path: Path) -> None:
        backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{EOS} $A", special_tokens=[(EOS, EOS_ID)]
        )
        backend.enable_truncation(3)
        backend.enable_padding(length=50)
        backend.save(str(path / "tokenizer.json"))
        tokenizer = Tokenizer.from_directory(path)
        plain = tokenizer.encode("the cat sat on the mat", add_special_tokens=False)
        assert len(plain) > 3
        assert tokenizer.decode(plain) == "the cat sat on the mat"
        assert tokenizer.encode("the cat sat on the mat") == [EOS_ID, *plain]


class TestGpt2Form:
    @settings(deadline=None)
    @given(texts)
    @example(f"the{EOS}cat 日本\n")
    def test_same_ids(self, tokenizer: Tokenizer, gpt2: Tokenizer, text: str) -> None:
        assert gpt2.encode(text) == tokenizer.encode(text)

    def test_same_facts(self, tokenizer: Tokenizer, gpt2: Tokenizer) -> None:
        assert (gpt2.vocab_size, gpt2.special_ids) == (401, {EOS_ID})
        assert (gpt2.eos_token_id, gpt2.bos_token_id) == (EOS_ID, EOS_ID)
        for index in range(401):
            assert gpt2.token_bytes(index) == tokenizer.token_bytes(index)

    def test_end_of_text_is_special_whatever_the_roles(self, gpt2_path: Path) -> None:
        write(gpt2_path / "generation_config.json", {"eos_token_id": 3, "bos_token_id": 3})
        other = Tokenizer.from_directory(gpt2_path)
        assert other.encode(EOS) == [EOS_ID]
        assert other.special_ids == {EOS_ID}

    def test_options_of_the_configuration(self, gpt2_path: Path, tokenizer: Tokenizer) -> None:
        config = {"add_prefix_space": True, "add_bos_token": True}
        write(gpt2_path / "tokenizer_config.json", config)
        other = Tokenizer.from_directory(gpt2_path)
        assert other.encode("the cat") == [EOS_ID, *tokenizer.encode(" the cat")]
        assert other.encode("the cat", add_special_tokens=False) == tokenizer.encode(" the cat")
        assert other.decode(other.encode("the cat")) == " the cat"

    def test_bos_asked_for_but_missing(self, gpt2_path: Path) -> None:
        config = {"add_bos_token": True, "bos_token": "<s>"}
        write(gpt2_path / "tokenizer_config.json", config)
        with pytest.raises(TokenizerError, match=r"tokenizer_config.json: add_bos_token"):
            Tokenizer.from_directory(gpt2_path)

    @pytest.mark.parametrize("line", ["the", "a b c", " a", "qq zz", "Q Z"])
    def test_broken_merges(self, gpt2_path: Path, line: str) -> None:
        merges = gpt2_path / "merges.txt"
        merges.write_text(merges.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
        with pytest.raises(TokenizerError, match=r"merges\.txt: line \d+"):
            Tokenizer.from_directory(gpt2_path)

    @pytest.mark.parametrize("entry", [-1, "7", 1.0, True, None, 1 << 32, 3])
    def test_broken_vocabulary_entries(self, gpt2_path: Path, entry: Any) -> None:
        vocabulary = json.loads((gpt2_path / "vocab.json").read_text(encoding="utf-8"))
        write(gpt2_path / "vocab.json", vocabulary | {"new": entry})
        with pytest.raises(TokenizerError, match=r"vocab\.json: "):
            Tokenizer.from_directory(gpt2_path)

    def test_holes_in_the_vocabulary(self, gpt2_path: Path) -> None:
        vocabulary = json.loads((gpt2_path / "vocab.json").read_text(encoding="utf-8"))
        write(gpt2_path / "vocab.json", vocabulary | {EOS: 410})
        other = Tokenizer.from_directory(gpt2_path)
        assert (other.vocab_size, other.eos_token_id) == (411, 410)
        assert (other.token_bytes(405), other.token_text(405)) == (b"", "token_id:405")

    @pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
    def test_one_file_alone(self, gpt2_path: Path, missing: str) -> None:
        (gpt2_path / missing).unlink()
        with pytest.raises(TokenizerError, match=f"{missing}: cannot be read"):
            Tokenizer.from_directory(gpt2_path)


class TestBrokenFiles:
    def test_empty_and_absent_directories(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "absent"):
            with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor vocab\.json"):
                Tokenizer.from_directory(path)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}'])
    def test_tokenizer_json(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a usable tokenizer"):
            Tokenizer.from_directory(tmp_path)

    def test_merges_that_make_the_library_panic(self, path: Path) -> None:
        raw = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        raw["model"]["merges"].append(["Q", "Z"])
        write(path / "tokenizer.json", raw)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a usable tokenizer"):
            Tokenizer.from_directory(path)

    def test_not_utf8(self, path: Path) -> None:
        (path / "tokenizer.json").write_bytes(b'"\xff"')
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: not valid UTF-8"):
            Tokenizer.from_directory(path)

    @pytest.mark.parametrize(
        "name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]
    )
    @pytest.mark.parametrize(
        "content",
        [
            "{",
            "[]",
            '{"eos_token": 5, "eos_token_id": "x"}',
            '{"eos_token": [], "eos_token_id": [-1]}',
        ],
    )
    def test_the_other_files(self, path: Path, name: str, content: str) -> None:
        (path / name).write_text(content, encoding="utf-8")
        with pytest.raises(TokenizerError, match=name):
            Tokenizer.from_directory(path)

    @pytest.mark.parametrize("listed", [[1], {"x": {"content": "a"}}, {"1": "a"}, {"1": {}}])
    def test_malformed_lists_of_added_tokens(self, path: Path, listed: Any) -> None:
        write(path / "tokenizer_config.json", {"added_tokens_decoder": listed})
        with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: added_tokens_decoder"):
            Tokenizer.from_directory(path)

    @pytest.mark.parametrize(
        ("decoder", "name"),
        [
            (decoders.WordPiece(), "WordPiece"),
            (
                decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]),
                r"Sequence\(ByteFallback, Fuse\)",
            ),
            (None, "none"),
        ],
    )
    def test_other_decoders_are_named(self, path: Path, decoder: Any, name: str) -> None:
        backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        backend.decoder = decoder
        backend.save(str(path / "tokenizer.json"))
        with pytest.raises(TokenizerError, match=f"decoder {name} is not supported"):
            Tokenizer.from_directory(path)


# --- chat templates and the names of special tokens --------------------------------------------


def test_special_tokens_are_known_by_their_roles(path: Path) -> None:
    config = {"eos_token": EOS, "bos_token": {"content": "<s>"}, "pad_token": None}
    write(path / "tokenizer_config.json", config)
    assert Tokenizer.from_directory(path).special_tokens == {"eos_token": EOS, "bos_token": "<s>"}


def test_end_of_text_has_both_roles_where_all_files_are_silent(gpt2: Tokenizer) -> None:
    assert gpt2.special_tokens == {"eos_token": EOS, "bos_token": EOS}


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (None, None),
        ("{{ messages }}", "{{ messages }}"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], None),
    ],
)
def test_the_chat_template_of_the_configuration(
    path: Path, configured: object, expected: str | None
) -> None:
    write(path / "tokenizer_config.json", {"chat_template": configured})
    assert Tokenizer.from_directory(path).chat_template == expected
    (path / "chat_template.jinja").write_text("a file of its own\n", encoding="utf-8")
    assert Tokenizer.from_directory(path).chat_template == "a file of its own\n"


@pytest.mark.parametrize("configured", [5, {"default": "x"}, [{"name": "default", "template": 5}]])
def test_a_chat_template_that_is_no_text(path: Path, configured: object) -> None:
    write(path / "tokenizer_config.json", {"chat_template": configured})
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: chat_template"):
        Tokenizer.from_directory(path)

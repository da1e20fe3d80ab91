"""Text files to token streams."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from engine.documents import END_OF_TEXT, read_documents
from engine.errors import ConfigError
from engine.training.data import (
    DataSource,
    easy_share,
    easy_words,
    encode_stream,
    load_sources,
    prepare_data,
    train_tokenizer,
    window_batch,
)

STORIES = [
    f"Story {n}: the cat and the dog went to the {n}th park, and it's fun." for n in range(40)
]


def write(path: Path, documents: list[str]) -> Path:
    path.write_text(f"\n{END_OF_TEXT}\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    return write(tmp_path / "stories.txt", STORIES)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(STORIES, 290)


def test_reads_documents(tmp_path: Path) -> None:
    text = f"\n one\nmore \n{END_OF_TEXT}\n\n{END_OF_TEXT}\r\ntwo é\r\n{END_OF_TEXT}"
    plain = tmp_path / "data.txt"
    plain.write_bytes(text.encode())
    packed = tmp_path / "data.txt.xz"
    packed.write_bytes(lzma.compress(text.encode()))
    assert read_documents(plain) == read_documents(packed) == ["one\nmore", "two é"]


@pytest.mark.parametrize("content", [None, b"", f"\n{END_OF_TEXT}\n".encode(), b"\xff\xfe"])
def test_refuses_files_without_text(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.txt"):
        read_documents(path)


def test_refuses_a_broken_archive(tmp_path: Path) -> None:
    path = tmp_path / "data.xz"
    path.write_bytes(b"not an archive")
    with pytest.raises(ConfigError, match=r"data\.xz cannot be read"):
        read_documents(path)


def test_parses_sources() -> None:
    assert DataSource.parse("a/b.txt") == DataSource(Path("a/b.txt"), 1, 0.0)
    assert DataSource.parse("b.xz:3") == DataSource(Path("b.xz"), 3, 0.0)
    assert DataSource.parse("b.xz:3:0.9") == DataSource(Path("b.xz"), 3, 0.9)


@pytest.mark.parametrize("text", ["a:x", "a:0", "a:1:1.5", "a:1:nan", "a:1:0.5:2", "a:"])
def test_refuses_malformed_sources(text: str) -> None:
    with pytest.raises(ConfigError, match="is not FILE"):
        DataSource.parse(text)


def test_easy_words_occur_twice() -> None:
    vocabulary = easy_words(["The cat.", "the dog's bone", "A CAT"])
    assert vocabulary == {"the", "cat"}
    assert easy_share("The cat sat: the end", vocabulary) == 3 / 5
    assert easy_share("123", vocabulary) == 0.0


def test_heldout_documents_are_in_no_training_data(tmp_path: Path) -> None:
    first = write(tmp_path / "first.txt", STORIES + STORIES[:20])
    second = write(tmp_path / "second.txt", ["something else", *STORIES[:30]])
    training, heldout = load_sources([DataSource(first), DataSource(second)], 10, seed=0)
    assert len(heldout) == 10
    assert not set(heldout) & set(training)
    assert set(training) == {*STORIES, "something else"} - set(heldout)


def test_repeats_and_shuffles_by_seed(tmp_path: Path, stories: Path) -> None:
    other = write(tmp_path / "other.txt", ["one", "two"])
    sources = [DataSource(stories, 2), DataSource(other, 3)]
    training, heldout = load_sources(sources, 5, seed=1)
    assert sorted(training) == sorted(
        2 * [s for s in STORIES if s not in heldout] + 3 * ["one", "two"]
    )
    assert load_sources(sources, 5, seed=1) == (training, heldout)
    different, different_heldout = load_sources(sources, 5, seed=2)
    assert different_heldout != heldout
    assert different != training
    assert training[:35] != training[35:70], "repeats are shuffled together, not one by one"


def test_keeps_the_easy_documents_of_later_sources(tmp_path: Path, stories: Path) -> None:
    documents = ["the cat and the dog", "the quarterly cat", "fiscal consolidation"]
    other = write(tmp_path / "other.txt", documents)
    for share, expected in ((0.0, documents), (0.5, documents[:2]), (0.9, documents[:1])):
        training, _ = load_sources([DataSource(stories), DataSource(other, 1, share)], 5, 0)
        assert {d for d in training if not d.startswith("Story")} == set(expected)


def test_refuses_sources_that_leave_nothing(tmp_path: Path, stories: Path) -> None:
    hard = write(tmp_path / "hard.txt", ["fiscal consolidation"])
    copies = write(tmp_path / "copies.txt", ["same"] * 5)
    with pytest.raises(ConfigError, match=r"hard\.txt is left"):
        load_sources([DataSource(stories), DataSource(hard, 1, 0.5)], 5, 0)
    with pytest.raises(ConfigError, match="only 40 documents"):
        load_sources([DataSource(stories)], 40, 0)
    with pytest.raises(ConfigError, match="copies of held-out"):
        load_sources([DataSource(copies)], 1, 0)
    with pytest.raises(ConfigError, match="cannot be filtered"):
        load_sources([DataSource(stories, 1, 0.5)], 5, 0)


def test_end_of_text_is_the_last_id_and_merges_are_in_order(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 290
    assert tokenizer.token_to_id(END_OF_TEXT) == 289
    assert tokenizer.encode(f"a{END_OF_TEXT}").ids[-1] == 289
    names = [tokenizer.id_to_token(index) or "" for index in range(289)]
    assert all(len(name) == 1 for name in names[:256])
    assert all(len(name) > 1 for name in names[256:])


@pytest.mark.parametrize("text", [*STORIES[:2], "日本 é 😀\n\n  tabs\t", "don't  stop", " x"])
def test_ids_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert max(ids) < 289
    assert tokenizer.decode(ids) == text


def test_words_are_split_as_gpt2_splits_them(tokenizer: Tokenizer) -> None:
    assert tokenizer.pre_tokenizer is not None
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("It's 12  cats, ok")]
    assert pieces == ["It", "'s", "Ġ12", "Ġ", "Ġcats", ",", "Ġok"]


@pytest.mark.parametrize(
    ("size", "message"), [(5000, "too little text"), (256, "257 to 65536"), (65537, "257 to 65536")]
)
def test_refuses_a_vocabulary_that_cannot_be(size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(STORIES, size)


def test_stream_ends_every_document(tokenizer: Tokenizer) -> None:
    stream = encode_stream(tokenizer, STORIES * 30)
    assert stream.dtype == np.uint16
    ends = np.flatnonzero(stream == 289)
    assert len(ends) == 1200 and ends[-1] == len(stream) - 1
    assert tokenizer.decode(stream[: ends[0]].tolist()) == STORIES[0]
    assert tokenizer.decode(stream[ends[-2] + 1 : ends[-1]].tolist()) == STORIES[-1]
    assert encode_stream(tokenizer, []).shape == (0,)


def test_stream_needs_an_end_of_text() -> None:
    bare = Tokenizer(train_tokenizer(STORIES, 257).model)
    with pytest.raises(ConfigError, match=r"has no <\|endoftext\|>"):
        encode_stream(bare, ["x"])


def test_windows_follow_each_other_and_wrap() -> None:
    stream = np.arange(10, dtype=np.uint16)
    batch = window_batch(stream, 4, 2, 3)
    # Windows share one token: the target of one's last position is the next one's first input.
    assert batch.tolist() == [[4, 5, 6, 7], [7, 8, 9, 0]]
    assert batch.dtype == np.int64
    assert window_batch(stream, 4 + 6, 2, 3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert window_batch(stream, 10**12 + 9, 1, 2).tolist() == [[9, 0, 1]]


def test_prepares_a_run_once(tmp_path: Path, stories: Path) -> None:
    out = tmp_path / "run"
    sources = [DataSource(stories)]
    prepare_data(out, sources, 290, 5, seed=0)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    heldout = read_documents(out / "heldout.txt")
    assert len(heldout) == 5
    np.testing.assert_array_equal(np.load(out / "heldout.npy"), encode_stream(tokenizer, heldout))
    assert (np.load(out / "stream.npy") == 289).sum() == 35
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(before) == [
        "data.json", "heldout.npy", "heldout.txt", "stream.npy", "tokenizer.json",
    ]  # fmt: skip
    prepare_data(out, sources, 290, 5, seed=0)
    prepare_data(out, [], 290, 5, seed=0)
    with pytest.raises(ConfigError, match="other choices"):
        prepare_data(out, [DataSource(stories, 2)], 290, 5, seed=0)
    with pytest.raises(ConfigError, match="other choices"):
        prepare_data(out, sources, 290, 5, seed=1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_interrupted_preparation_starts_over(tmp_path: Path, stories: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "stream.npy").write_bytes(b"half of it")
    prepare_data(out, [DataSource(stories)], 290, 5, seed=0)
    assert len(np.load(out / "stream.npy")) > 35


def test_a_file_with_nothing_beside_what_is_held_out_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "two.txt"
    file.write_text(f"one\n{END_OF_TEXT}\ntwo", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"two\.txt has only 2 documents, and 5 of"):
        prepare_data(tmp_path / "run", [DataSource(file)], 290, 5, seed=0)


def test_a_new_run_needs_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs data"):
        prepare_data(tmp_path / "run", [], 290, 5, seed=0)
    assert not (tmp_path / "run").exists()


def test_a_given_tokenizer_is_used_and_copied(tmp_path: Path, stories: Path) -> None:
    given = train_tokenizer(STORIES, 280)
    given.enable_truncation(5)
    given.enable_padding(length=64, pad_id=0)
    given.save(str(tmp_path / "given.json"))
    out = tmp_path / "run"
    prepare_data(out, [DataSource(stories)], 280, 5, 0, tmp_path / "given.json", end_token_id=200)
    copied = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert copied.get_vocab() == given.get_vocab()
    stream, documents = np.load(out / "stream.npy"), read_documents(stories)
    first = stream[: np.flatnonzero(stream == 200)[0]]
    assert len(first) > 5, "not cut short"
    assert copied.decode(first.tolist()) in documents
    (tmp_path / "other.json").write_bytes((tmp_path / "given.json").read_bytes())
    with pytest.raises(ConfigError, match="other choices"):
        prepare_data(out, [DataSource(stories)], 280, 5, 0, tmp_path / "other.json")


def test_large_vocabularies_take_four_bytes() -> None:
    words = {f"w{index}": index for index in range((1 << 16) + 2)}
    large = Tokenizer(models.WordLevel(words, unk_token="w0"))
    stream = encode_stream(large, ["w65537", "w3"], end_token_id=65536)
    assert stream.tolist() == [65537, 65536, 3, 65536]

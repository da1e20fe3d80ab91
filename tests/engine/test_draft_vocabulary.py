"""Which tokens count as frequent, by counts, by merges, by scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models

from engine.build import demo_model_path, load_model
from engine.config import EngineConfig
from engine.documents import read_documents
from engine.draft_vocabulary import (
    DRAFT_VOCAB_FILE,
    count_tokens,
    draft_ranking,
    likely_order,
    save_draft_vocab,
)
from engine.errors import CheckpointError
from engine.tokenizer import Tokenizer
from support.checkpoints import tiny_config, write_checkpoint
from support.gpt2 import VOCAB_SIZE as GPT2_SIZE
from support.gpt2 import write_gpt2_tokenizer
from support.sentence_pieces import (
    EOS_ID,
    VOCAB_SIZE,
    unigram_tokenizer,
    write_converted,
    write_sentencepiece_model,
)
from support.tokenizers import write_tokenizer

STORIES = read_documents(Path(__file__).parents[1] / "data" / "heldout_stories.txt")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose ids are in SentencePiece's order: characters behind all merges."""
    path = tmp_path_factory.mktemp("pieces") / "model"
    write_checkpoint(path, tiny_config(vocab_size=VOCAB_SIZE, eos_token_ids=(EOS_ID,)))
    return write_converted(path, write_sentencepiece_model(path.with_name("source")))


def share_of_text(tokenizer: Tokenizer, ids: list[int]) -> float:
    """How many of the stories' tokens are among the ids."""
    chosen = set(ids)
    tokens = [index for story in STORIES for index in tokenizer.encode(story)]
    return sum(index in chosen for index in tokens) / len(tokens)


@pytest.mark.parametrize("num_ids", [150, 300, 600])
def test_merges_rank_sentencepieces_ids(pieces: Path, num_ids: int) -> None:
    tokenizer = Tokenizer.from_directory(pieces)
    ranking = draft_ranking(pieces, tokenizer, VOCAB_SIZE)
    assert sorted(ranking) == list(range(VOCAB_SIZE))
    ranked = share_of_text(tokenizer, ranking[:num_ids])
    newline = tokenizer.encode("\n")[-1]
    assert newline < 259 and newline in ranking[:10]
    numbered = share_of_text(tokenizer, list(range(num_ids)))
    counted = share_of_text(
        tokenizer, [index for index, _ in count_tokens(tokenizer, STORIES).most_common(num_ids)]
    )
    print(f"{num_ids} ids: {numbered:.1%} as numbered, {ranked:.1%} ranked, {counted:.1%} counted")
    assert numbered + 0.1 < ranked < counted


def test_a_ranking_puts_each_part_before_what_is_made_of_it() -> None:
    vocabulary = {"ab": 0, "abc": 1, "b": 2, "z": 3, "c": 4, "a": 5, "y": 6}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", "c")]))
    library.decoder = decoders.Metaspace()
    # The characters b, z and c are numbered before a, so that they are as frequent.
    assert likely_order(library) == [2, 3, 4, 5, 0, 1, 6]


def test_a_unigram_model_says_how_likely_its_tokens_are() -> None:
    library = unigram_tokenizer()
    scores = [score for _, score in json.loads(library.to_str())["model"]["vocab"]]
    ranking = likely_order(library)
    assert sorted(ranking) == list(range(len(scores)))
    assert [scores[index] for index in ranking] == sorted(scores, reverse=True)


def test_byte_level_ids_are_ranked_by_themselves(tmp_path: Path) -> None:
    gpt2 = Tokenizer.from_directory(write_gpt2_tokenizer(tmp_path))
    assert draft_ranking(tmp_path, gpt2, GPT2_SIZE + 3) == list(range(GPT2_SIZE + 3))
    demo = Tokenizer.from_directory(demo_model_path())
    assert likely_order(demo.library) == list(range(demo.vocab_size))


def test_a_shuffled_byte_level_vocabulary_is_ranked_by_its_merges(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 400)
    ordered = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    raw = json.loads(ordered.to_str())["model"]
    by_text = {text: index for index, text in enumerate(sorted(raw["vocab"]))}
    shuffled = tokenizers.Tokenizer(models.BPE(by_text, [tuple(pair) for pair in raw["merges"]]))
    shuffled.decoder = decoders.ByteLevel()
    texts = [shuffled.id_to_token(index) for index in likely_order(shuffled)]
    results = ["".join(pair) for pair in raw["merges"]]
    assert [text for text in texts if text in set(results)] == results


def test_counts_come_first_and_the_rest_as_likely(pieces: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(pieces)
    counted = list(count_tokens(tokenizer, ["the the the cat", "the cat"]))
    assert [tokenizer.token_text(index) for index in counted][:2] == [" the", " cat"]
    save_draft_vocab(tmp_path, counted)
    assert [file.name for file in tmp_path.iterdir()] == [DRAFT_VOCAB_FILE]
    ranking = draft_ranking(tmp_path, tokenizer, VOCAB_SIZE)
    assert ranking[: len(counted)] == counted
    rest = [index for index in draft_ranking(pieces, tokenizer, VOCAB_SIZE) if index not in counted]
    assert ranking[len(counted) :] == rest


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_backend_drafts_from_the_most_frequent(
    pieces: Path, tmp_path: Path, backend: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in pieces.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    save_draft_vocab(model, [900, 5, 700])
    loaded = load_model(model, EngineConfig(draft_vocab_size=3), backend, threads=1)
    special = loaded.tokenizer.special_ids
    assert list(loaded.backend.draft_ids) == sorted({900, 5, 700, *special})
    loaded.backend.close()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"token_ids": 5}', '{"token_ids": [1, -1]}', '{"token_ids": [61]}']
)
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / DRAFT_VOCAB_FILE).write_text(content, encoding="utf-8")
    tokenizer: Any = None
    with pytest.raises(CheckpointError, match=DRAFT_VOCAB_FILE):
        draft_ranking(tmp_path, tokenizer, 61)

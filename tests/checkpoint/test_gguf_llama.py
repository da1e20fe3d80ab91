"""What llama.cpp makes of an exported file: the same ids of every text, the same next tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.build import demo_model_path
from engine.checkpoint.gguf_export import export_gguf
from engine.documents import read_documents
from engine.llm import LLM
from engine.tokenizer import Tokenizer
from support.checkpoints import write_checkpoint
from support.gguf_files import block_config
from support.gpt2 import END_ID, VOCAB_SIZE, write_gpt2_tokenizer

# Not among the tools for tests: compiling it takes longer than all of them.
llama_cpp: Any = pytest.importorskip("llama_cpp")

STORIES = read_documents(Path(__file__).parents[1] / "data" / "heldout_stories.txt")
NUM_LINES = 1000
NUM_TOKENS = 2000

ALPHABET = [
    *"  \t\r\n''abcdeftxyzABC0123456789.,!?-_#(){}",
    *"éßıſÀ日本語猫한글नमस्तेعرب😀👩\u200d👧🇩🇪\u0301\u00a0\u3000\u200b\ufeff\ufffd",
    *("<|endoftext|>", " the", "'ll", "'S", "\r\n"),
]


def lines() -> list[str]:
    """The stories' lines, and random ones that no story has."""
    told = [line for story in STORIES for line in story.split("\n") if line]
    rng = random.Random(5)
    made = ("".join(rng.choices(ALPHABET, k=rng.randint(1, 30))) for _ in range(NUM_LINES))
    return [*told, *made][:NUM_LINES]


@pytest.fixture(scope="module")
def demo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demo") / "demo.gguf"
    return export_gguf(demo_model_path(), file).path


@pytest.fixture(scope="module", params=["demo", "gpt2"])
def pair(
    request: pytest.FixtureRequest, demo_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tokenizer, Any]]:
    """Our tokenizer, and llama.cpp's from the exported file's metadata."""
    source, file = demo_model_path(), demo_file
    if request.param == "gpt2":
        config = block_config(num_layers=1, vocab_size=VOCAB_SIZE, eos_token_ids=(END_ID,))
        source = write_gpt2_tokenizer(
            write_checkpoint(tmp_path_factory.mktemp("gpt2") / "model", config)
        )
        file = export_gguf(source, source.with_name("model.gguf")).path
    llama = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    yield Tokenizer.from_directory(source), llama
    llama.close()


def test_lines_become_the_same_tokens(pair: tuple[Tokenizer, Any]) -> None:
    from benchmarks.gguf_parity import lines_with_other_ids

    chosen = lines()
    assert len(chosen) == NUM_LINES
    assert lines_with_other_ids(*pair, chosen) == []


def test_special_tokens_are_known(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, llama = pair
    assert llama.token_eos() == tokenizer.eos_token_id
    assert llama.tokenize(b"a<|endoftext|>b", special=True) == tokenizer.encode("a<|endoftext|>b")
    assert llama.tokenize(b"the") == tokenizer.encode("the"), "nothing is put before a text"


def test_the_next_tokens_agree(demo_file: Path) -> None:
    from benchmarks.gguf_parity import (
        LEAST_AGREEMENT,
        compare,
        load_llama,
        our_scores,
        their_scores,
    )

    llama = load_llama(demo_file)
    with LLM() as ours:
        texts, num_tokens = [], 0
        for story in STORIES:
            if num_tokens < NUM_TOKENS:
                texts.append(ours.tokenizer.encode(story)[: llama.n_ctx() - 1])
                num_tokens += len(texts[-1]) - 1
        assert num_tokens >= NUM_TOKENS
        mine = [our_scores(ours, ids) for ids in texts]
        theirs = [their_scores(llama, ids) for ids in texts]
    llama.close()
    assert compare(mine, theirs) >= LEAST_AGREEMENT
    # The bar means something: another text's scores do not come near it.
    shifted = [their[1:] for their in (scores.best for scores in theirs)]
    wrong = sum((a.best[: len(b)] == b).sum() for a, b in zip(mine, shifted, strict=True))
    assert wrong < 0.2 * num_tokens

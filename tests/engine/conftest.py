"""A small real byte-level BPE tokenizer, trained on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from engine.tokenizer import Tokenizer

CORPUS = [
    "Once upon a time there was a little girl who liked to play with the cat.",
    "The cat sat on the mat, and the dog said: I'll play, too! They were happy.\n\n",
    "日本語の文章です。東京は日本の首都です。猫が好きです。",
    "Ça va? Où est le café? Été à la forêt, naïve façade.",
    "😀😀 👩‍👩‍👧 🎉🎉 → ← ∀x∈ℝ: x² ≥ 0",
]


@pytest.fixture(scope="session")
def bpe() -> tokenizers.Tokenizer:
    """400 tokens in GPT-2's manner, then `<|endoftext|>` (special) as the last id, 400."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    assert backend.get_vocab_size() == 400
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return backend


@pytest.fixture(scope="session")
def tokenizer_path(bpe: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with nothing but that tokenizer's `tokenizer.json`."""
    path = tmp_path_factory.mktemp("tokenizer")
    bpe.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.from_directory(tokenizer_path)

"""Real SentencePiece tokenizers, trained on the spot and converted as checkpoints have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1000
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
FIRST_BYTE_ID = 3
"""`<0x00>`; the other bytes follow, then merges in their order, then characters by frequency."""

Form = Literal["llama2", "transformers"]
FORMS: tuple[Form, ...] = ("llama2", "transformers")

_STORIES = Path(__file__).resolve().parents[1] / "data" / "heldout_stories.txt"
_OTHER_TEXT = (
    "日本語の文章です。東京は日本の首都です。猫が好きです。",
    "Ça va? Où est le café? Été à la forêt, naïve façade.",
)
_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
}


def write_sentencepiece_model(path: Path) -> Path:
    """Train with Llama 2's options; writes `tokenizer.model` and `tokenizer_config.json`."""
    path.mkdir(parents=True, exist_ok=True)
    lines = [line for line in _STORIES.read_text(encoding="utf-8").split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *_OTHER_TEXT * 5]),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.9995,
        minloglevel=2,
    )
    (path / "tokenizer.vocab").unlink()
    (path / "tokenizer_config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    return path


def write_converted(path: Path, source: Path, form: Form = "llama2") -> Path:
    """Convert `tokenizer.model` of `source` to `tokenizer.json`, in one of two forms.

    transformers cuts no text and lets Metaspace mark spaces; what was published with Llama 2
    says the same by normalisers.
    """
    from transformers import AutoTokenizer

    path.mkdir(parents=True, exist_ok=True)
    file = path / "tokenizer.json"
    AutoTokenizer.from_pretrained(source).backend_tokenizer.save(str(file))
    if form == "llama2":
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        raw["pre_tokenizer"] = None
        raw["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }
        file.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    return path


def unigram_tokenizer() -> Tokenizer:
    """SentencePiece's other kind, as T5 has it: pieces with scores, Metaspace on both sides."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    lines = _STORIES.read_text(encoding="utf-8").split("\n")
    tokenizer.train_from_iterator([*lines[:200], *_OTHER_TEXT], trainer)
    return tokenizer

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from engine.errors import TokenizerError
from engine.tokenizer import Tokenizer
from support.checkpoints import write_checkpoint
from support.gguf_files import block_config, export
from support.tokenizers import END_OF_TEXT, write_tokenizer

PREFIX = "tokenizer.ggml."
VOCAB_SIZE = 320
END_ID = VOCAB_SIZE - 1

Raw = dict[str, Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One layer, with a tokenizer of as many ids; config.json names no end of text."""
    config = block_config(num_layers=1, vocab_size=VOCAB_SIZE, eos_token_ids=())
    return write_tokenizer(write_checkpoint(tmp_path / "m", config), VOCAB_SIZE)


def exported(source: Path) -> Raw:
    """The tokenizer's metadata, without the names' common beginning."""
    found = export(source).metadata
    return {name.removeprefix(PREFIX): found[name] for name in found if name.startswith(PREFIX)}


def change(file: Path, edit: Callable[[Raw], object]) -> None:
    raw = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    edit(raw)
    file.write_text(json.dumps(raw), encoding="utf-8")


def bos_before(raw: Raw, token: str, index: int) -> None:
    """A post-processor that puts a token before every text."""
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": token, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


def test_tokens_merges_and_ends(model: Path) -> None:
    raw = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    by_id = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].__getitem__)
    assert exported(model) == {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": by_id,
        "token_type": [TokenType.NORMAL] * END_ID + [TokenType.CONTROL],
        "merges": raw["model"]["merges"],
        "eos_token_id": END_ID,
        "bos_token_id": END_ID,
        "add_bos_token": False,
        "add_eos_token": False,
    }


def test_gpt2s_two_files_say_the_same(model: Path) -> None:
    expected = exported(model)
    raw = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    (model / "vocab.json").write_text(json.dumps(raw["vocab"]), encoding="utf-8")
    (model / "merges.txt").write_text("#version: 0.2\n" + "\n".join(raw["merges"]), "utf-8")
    assert exported(model.rename(model.with_name("two"))) == expected


def test_added_tokens_and_holes(tmp_path: Path) -> None:
    config = block_config(num_layers=1, vocab_size=VOCAB_SIZE + 3)
    model = write_tokenizer(write_checkpoint(tmp_path / "m", config), VOCAB_SIZE)
    plain = {"content": "<a b>", "single_word": False, "lstrip": False, "rstrip": False}
    added = {**plain, "normalized": False, "special": False, "id": VOCAB_SIZE}
    change(model / "tokenizer.json", lambda raw: raw["added_tokens"].append(added))
    found = exported(model)
    assert found["tokens"][END_ID:] == [END_OF_TEXT, "<a b>", "[PAD321]", "[PAD322]"]
    kinds = [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.UNUSED]
    assert found["token_type"][END_ID:] == kinds
    assert Tokenizer.from_directory(model).token_bytes(VOCAB_SIZE) == b"<a b>"


def test_bos_that_the_tokenizer_adds_is_added_there(model: Path) -> None:
    change(model / "tokenizer.json", lambda raw: bos_before(raw, END_OF_TEXT, END_ID))
    found = exported(model)
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, False)


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        ([], None, [END_ID]),
        ([5], None, [5]),
        ([5], [7, 5], [5, 7]),
        ([], [7, 8, 9], [7, 8, 9]),
    ],
)
def test_ends_are_those_that_the_engine_stops_at(
    model: Path, in_config: list[int], in_generation: list[int] | None, expected: list[int]
) -> None:
    change(model / "config.json", lambda raw: raw.update(eos_token_id=in_config))
    if in_generation is not None:
        generation = model / "generation_config.json"
        change(generation, lambda raw: raw.update(eos_token_id=in_generation))
    found = exported(model)
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    assert [found[key] for key in keys if key in found] == expected


def test_ends_that_do_not_fit_are_told(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(model / "config.json", lambda raw: raw.update(eos_token_id=[1, 2, 3, 4, 5]))
    assert exported(model)["eom_token_id"] == 3
    assert f"{model}: llama.cpp will not stop at the end tokens [4, 5]" in caplog.text


def test_without_a_tokenizer_texts_are_ids(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TokenizerError, match=f"{model}: no file names an end-of-text token"):
        exported(model)
    change(model / "config.json", lambda raw: raw.update(eos_token_id=6))
    found = exported(model)
    assert f"{model}: has no tokenizer" in caplog.text
    assert found["tokens"] == [f"<{index}>" for index in range(VOCAB_SIZE)]
    assert set(found["token_type"]) == {TokenType.USER_DEFINED}
    assert (found["eos_token_id"], found["bos_token_id"]) == (6, 6)
    assert not found["add_bos_token"] and found["merges"]


def no_merges(raw: Raw) -> None:
    vocab = {token: index for token, index in raw["model"]["vocab"].items() if index < 256}
    raw["model"] |= {"merges": [], "vocab": vocab}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda raw: raw.update(normalizer={"type": "NFC"}),
            "differs from GPT-2's in normalizer: ",
        ),
        (
            lambda raw: raw["pre_tokenizer"].update(add_prefix_space=True),
            "in pre_tokenizer: ",
        ),
        (lambda raw: raw["pre_tokenizer"].update(use_regex=False), "in pre_tokenizer: "),
        (lambda raw: raw.update(pre_tokenizer=None), "in pre_tokenizer: "),
        (
            lambda raw: (
                raw["model"].update(ignore_merges=True),
                raw.update(normalizer={"type": "NFC"}),
            ),
            "in normalizer, model: ",
        ),
        (lambda raw: bos_before(raw, "A", 32), "puts other tokens around a text"),
        (no_merges, "has no merges"),
    ],
)
def test_what_llama_cpp_would_do_otherwise_is_refused(
    model: Path, edit: Callable[[Raw], object], message: str
) -> None:
    change(model / "tokenizer.json", edit)
    with pytest.raises(TokenizerError, match=f"{model}: .*{message}"):
        exported(model)
    assert [file.name for file in model.parent.iterdir()] == ["m"]


def test_a_tokenizer_without_an_end_is_refused(model: Path) -> None:
    def forget_the_end(raw: Raw) -> None:
        raw["added_tokens"] = []
        del raw["model"]["vocab"][END_OF_TEXT]

    change(model / "tokenizer.json", forget_the_end)
    with pytest.raises(TokenizerError, match="no file names an end-of-text token"):
        exported(model)


def test_a_tokenizer_of_more_ids_than_the_model_is_refused(model: Path) -> None:
    write_tokenizer(model, VOCAB_SIZE + 1)
    with pytest.raises(TokenizerError, match="do not belong together"):
        exported(model)

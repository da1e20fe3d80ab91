"""The tokenizers of models that people have: GPT-2's own, the demo's, and Llama 3's kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from engine.build import demo_model_path
from engine.checkpoint.end_tokens import with_generation_eos
from engine.detokenizer import Detokenizer
from engine.tokenizer import Tokenizer
from support.checkpoints import tiny_config
from support.gpt2 import END_ID, VOCAB_SIZE, write_gpt2_tokenizer

texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("the cat's 123\n\r\t\0 日本語猫é😀👩‍👧🇩🇪e\u0301\u0327\ufeff\ufffd"),
    ),
    max_size=60,
)

LLAMA3_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


@pytest.fixture(scope="module")
def gpt2_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_tokenizer(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def llama3_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vocabulary in the form of Llama 3's: all its specials follow the ordinary ids."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_CUTS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        ["The cats' 1234 stories, they've said. 日本語 😀\n\n"] * 9, trainer
    )
    begin = backend.get_vocab_size()
    backend.add_special_tokens([AddedToken(text, special=True) for text in LLAMA3_SPECIALS])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=[LLAMA3_SPECIALS[0], "$A"], special_tokens=[(LLAMA3_SPECIALS[0], begin)]
            ),
        ]
    )
    path = tmp_path_factory.mktemp("llama3")
    backend.save(str(path / "tokenizer.json"))
    config = {"bos_token": LLAMA3_SPECIALS[0], "eos_token": LLAMA3_SPECIALS[3]}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    generation = {"bos_token_id": begin, "eos_token_id": [begin + 1, begin + 2, begin + 3]}
    (path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["gpt2", "demo", "llama3"])
def tokenizer(request: pytest.FixtureRequest, gpt2_path: Path, llama3_path: Path) -> Tokenizer:
    paths = {"gpt2": gpt2_path, "demo": demo_model_path(), "llama3": llama3_path}
    return Tokenizer.from_directory(paths[request.param])


@pytest.fixture(scope="module")
def gpt2(gpt2_path: Path) -> Tokenizer:
    return Tokenizer.from_directory(gpt2_path)


@settings(deadline=None, max_examples=300)
@given(text=texts)
@example(text="")
@example(text=" \n\n  don't 日本")
@example(text="a<|endoftext|>b")
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    framing, ids = tokenizer.encode(""), tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text) == [*framing, *ids]
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(deadline=None, max_examples=300)
@given(text=texts)
@example(text="👩‍👧🇩🇪")
def test_text_comes_whole_token_by_token(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    released = ""
    for index in tokenizer.encode(text, add_special_tokens=False):
        detokenizer.push(index)
        released += "".join(detokenizer.release(final=False))
        assert text.startswith(released), "a character was released in parts"
    assert released + "".join(detokenizer.release(final=True)) == text


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_ids_are_streamed_as_they_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Ids that no text has, too: half characters, and characters in the wrong order."""
    index = st.integers(0, tokenizer.vocab_size - 1)
    ids, skip = data.draw(st.lists(index, max_size=20)), data.draw(st.booleans())
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    released = ""
    for token in ids:
        detokenizer.push(token)
        released += "".join(detokenizer.release(final=False))
    released += "".join(detokenizer.release(final=True))
    assert released == tokenizer.decode(ids, skip)


@pytest.fixture(scope="module")
def transformers_gpt2(gpt2_path: Path) -> tokenizers.Tokenizer:
    """What transformers makes of the same files."""
    from transformers import AutoTokenizer

    (gpt2_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    return AutoTokenizer.from_pretrained(gpt2_path).backend_tokenizer


class TestGpt2:
    def test_facts(self, gpt2: Tokenizer) -> None:
        assert (gpt2.vocab_size, gpt2.eos_token_ids) == (VOCAB_SIZE, (END_ID,))
        assert gpt2.special_ids == {END_ID}
        # The ids that every account of GPT-2 gives for this.
        assert gpt2.encode("Hello, world!<|endoftext|>") == [15496, 11, 995, 0, 50256]

    @settings(deadline=None, max_examples=300)
    @given(text=texts)
    def test_ids_are_those_of_transformers(
        self, gpt2: Tokenizer, transformers_gpt2: tokenizers.Tokenizer, text: str
    ) -> None:
        assert gpt2.encode(text) == transformers_gpt2.encode(text).ids


class TestLlama3:
    def test_every_end_token_ends_a_text(self, llama3_path: Path) -> None:
        tokenizer = Tokenizer.from_directory(llama3_path)
        begin = tokenizer.bos_token_id
        assert begin is not None and tokenizer.encode("")[0] == begin
        ends = (begin + 3, begin + 1, begin + 2)
        assert tokenizer.eos_token_ids == ends
        assert tokenizer.special_ids == {begin, *ends}
        config = tiny_config(vocab_size=tokenizer.vocab_size, eos_token_ids=(begin + 1,))
        assert set(with_generation_eos(config, llama3_path).eos_token_ids) == set(ends)

    def test_special_text_in_a_prompt(self, llama3_path: Path) -> None:
        tokenizer = Tokenizer.from_directory(llama3_path)
        ids = tokenizer.encode("said<|eot_id|>cat", add_special_tokens=False)
        assert tokenizer.decode(ids) == "saidcat"
        assert tokenizer.decode(ids, skip_special_tokens=False) == "said<|eot_id|>cat"

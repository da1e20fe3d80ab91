"""Models with tokenizers of every kind, served: what streams is what decodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.names import EMBEDDING, LM_HEAD, published_name
from engine.config import ModelConfig
from engine.tokenizer import Tokenizer
from support.answers import read_answer, stream_text
from support.checkpoints import (
    random_tensors,
    raw_tensor,
    tiny_config,
    write_checkpoint,
    write_safetensors,
)
from support.gpt2 import END_ID, VOCAB_SIZE, write_gpt2_tokenizer
from support.sentence_pieces import (
    BOS_ID,
    EOS_ID,
    write_converted,
    write_sentencepiece_model,
)
from support.sentence_pieces import VOCAB_SIZE as NUM_PIECES
from support.served_process import ServedProcess, serving

TEXT = "The cat said: 👩‍👧 日本語, ☃ café!\n"
SAYING = "The cat said:👧 old,☃ 語 café!\n"
"""Of tokens that are all different, so that each can call for the next."""
KINDS = ("gpt2", "sentencepiece")


@dataclass(frozen=True)
class Model:
    """A served model and its tokenizer, read apart from it."""

    served: ServedProcess
    tokenizer: Tokenizer

    def complete(self, **body: Any) -> dict[str, Any]:
        """The one choice of an answer."""
        return self.served.complete(**body)["choices"][0]

    def stream(self, **body: Any) -> list[Any]:
        """The events of the same answer, streamed."""
        response = self.served.http.post("/v1/completions", json={**body, "stream": True})
        return read_answer(response).events


def write_model(folder: Path, kind: str) -> Path:
    """A model of random weights with GPT-2's tokenizer, or with one of SentencePiece's."""
    path = folder / "model"
    if kind == "gpt2":
        write_checkpoint(path, tiny_config(vocab_size=VOCAB_SIZE, eos_token_ids=(END_ID,)))
        return write_gpt2_tokenizer(path)
    config = tiny_config(vocab_size=NUM_PIECES, eos_token_ids=(EOS_ID,), bos_token_id=BOS_ID)
    write_checkpoint(path, config)
    return write_converted(path, write_sentencepiece_model(folder / "source"))


def write_saying(path: Path, ids: Sequence[int]) -> None:
    """Change a model's weights to those of one that, given the first of the ids, says the others.

    Its layers add nothing, and what the head reads from an embedding is the next id.
    """
    assert len(set(ids)) == len(ids)
    config = ModelConfig.from_directory(path)
    tensors = random_tensors(config, agreement_after=0, damping=0.0)
    tensors[LM_HEAD][:] = 0
    for here, following in pairwise(ids):
        tensors[LM_HEAD][following] = tensors[EMBEDDING][here]
    write_safetensors(
        path / "model.safetensors",
        {published_name(name): raw_tensor(values, "fp32") for name, values in tensors.items()},
    )


@pytest.fixture(scope="module", params=KINDS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """A model of random weights, as wide as GPT-2's vocabulary or SentencePiece's."""
    folder = tmp_path_factory.mktemp(request.param)
    path = write_model(folder, request.param)
    with serving(path, folder / "served.log") as served:
        yield Model(served, Tokenizer.from_directory(path))


def random_text(seed: int) -> dict[str, Any]:
    return {
        "prompt": "The",
        "max_tokens": 40,
        "seed": seed,
        "ignore_eos": True,
        "return_token_ids": True,
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_the_whole_text(model: Model, seed: int) -> None:
    whole = model.complete(**random_text(seed))
    assert len(whole["token_ids"]) == 40
    prompt = model.tokenizer.encode("The")
    expected = model.tokenizer.decode([*prompt, *whole["token_ids"]])
    assert "The" + whole["text"] == expected
    assert stream_text(model.stream(**random_text(seed))) == whole["text"]


@pytest.mark.parametrize("seed", range(3))
def test_characters_in_pieces_stream_whole(model: Model, seed: int) -> None:
    """Tokens that are parts of characters, in an order that seldom makes any."""
    pieces = sorted(set(model.tokenizer.encode("👩‍👧🇩🇪☃𝔘é the", add_special_tokens=False)))
    body = random_text(seed) | {"allowed_token_ids": pieces, "temperature": 2}
    whole = model.complete(**body)
    assert set(whole["token_ids"]) <= set(pieces)
    raw = b"".join(map(model.tokenizer.token_bytes, whole["token_ids"]))
    assert whole["text"] == raw.decode(errors="replace")
    assert stream_text(model.stream(**body)) == whole["text"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_streams_without_a_broken_character(kind: str, tmp_path: Path) -> None:
    path = write_model(tmp_path, kind)
    tokenizer = Tokenizer.from_directory(path)
    ids = tokenizer.encode(SAYING, add_special_tokens=False)
    write_saying(path, ids)
    partial = sum(tokenizer.token_text(index).startswith("bytes:") for index in ids)
    assert partial >= 7, "the text should have characters in pieces"
    body = {"prompt": ids[:1], "max_tokens": len(ids) - 1, "temperature": 0}
    with serving(path, tmp_path / "served.log") as served:
        said = Model(served, tokenizer)
        events = said.stream(**body)
        pieces = [choice["text"] for event in events for choice in event["choices"]]
        assert tokenizer.decode(ids[:1]) + "".join(pieces) == SAYING
        assert not any("\ufffd" in piece for piece in pieces)
        cut = said.complete(**body, stop="☃")
        assert tokenizer.decode(ids[:1]) + cut["text"] == SAYING.partition("☃")[0]


def test_logprobs_point_into_the_text(model: Model) -> None:
    # Where BOS alone is a prompt, the text begins with the answer.
    begins_text = model.tokenizer.bos_token_id == BOS_ID
    prompt = "" if begins_text else "The"
    found = model.complete(**random_text(5) | {"prompt": prompt}, logprobs=3)
    logprobs, text = found["logprobs"], found["text"]
    names, offsets = logprobs["tokens"], logprobs["text_offset"]
    assert names == [model.tokenizer.token_text(index) for index in found["token_ids"]]
    assert offsets == sorted(offsets) and offsets[-1] <= len(text)
    for position, (name, offset) in enumerate(zip(names, offsets, strict=True)):
        if name.startswith(("bytes:", "token_id:")):
            continue
        shown = name.removeprefix(" ") if position == 0 and begins_text else name
        # What could not become a character any more comes with the token that decided it.
        assert text[offset:].lstrip("\ufffd").startswith(shown), (name, offset)
    assert all(len(top) >= 3 for top in logprobs["top_logprobs"])


def test_stop_strings_across_tokens(model: Model) -> None:
    body = random_text(6)
    text = model.complete(**body)["text"]
    stop = max(text.split("\ufffd"), key=len)[3:9]
    assert len(stop) == 6
    cut = model.complete(**body, stop=stop)
    assert (cut["text"], cut["stop_reason"]) == (text[: text.index(stop)], stop)
    assert stream_text(model.stream(**body, stop=stop)) == cut["text"]


def test_tokenize_and_detokenize(model: Model) -> None:
    post = model.served.http.post
    ids = post("/tokenize", json={"prompt": TEXT, "add_special_tokens": False}).json()["tokens"]
    assert ids == model.tokenizer.encode(TEXT, add_special_tokens=False)
    assert post("/detokenize", json={"tokens": ids}).json()["prompt"] == TEXT

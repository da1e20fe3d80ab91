"""Logprobs of SentencePiece's tokens: bytes, names and offsets where spaces come and go."""

from __future__ import annotations

import pytest

from engine.detokenizer import Detokenizer
from engine.tokenizer import Tokenizer
from engine.types import TokenLogprobs, TokenOutput, TokenSource
from server.choices import ChoicePart
from server.logprobs import chat_logprobs, text_logprobs
from server.prompts import PreparedPrompt
from support.sentence_pieces import write_converted, write_sentencepiece_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    source = write_sentencepiece_model(tmp_path_factory.mktemp("model"))
    return Tokenizer.from_directory(write_converted(source, source))


def texts_of(tokenizer: Tokenizer, ids: list[int], prompt: list[int]) -> list[str]:
    """Each token's text, as the engine releases it."""
    detokenizer = Detokenizer(tokenizer, prompt=prompt)
    for index in ids:
        detokenizer.push(index)
    return detokenizer.release(final=True)


TEXT = "the cat ☃\n"


def choice_part(tokenizer: Tokenizer, num_prompt: int, echo: bool) -> ChoicePart:
    """A choice whose prompt is the first tokens of the text, and whose answer the others."""
    ids = tokenizer.encode(TEXT)
    prompt, answer = ids[:num_prompt], ids[num_prompt:]
    echoed = tokenizer.decode(prompt, skip_special_tokens=False) if echo else None
    scores = TokenLogprobs(0, -1.0, (), 1)
    return ChoicePart(
        index=0,
        prompt=PreparedPrompt(tuple(prompt), echoed),
        is_first=True,
        offset=len(echoed or ""),
        tokens=tuple(
            TokenOutput(index, text, TokenSource.PLAIN, scores)
            for index, text in zip(answer, texts_of(tokenizer, answer, prompt), strict=True)
        ),
        prompt_logprobs=(None, *[scores] * (num_prompt - 1)) if echo else None,
        end=None,
    )


@pytest.mark.parametrize("num_prompt", range(1, 8))
@pytest.mark.parametrize("echo", [False, True])
def test_offsets_point_into_the_text(tokenizer: Tokenizer, num_prompt: int, echo: bool) -> None:
    part = choice_part(tokenizer, num_prompt, echo)
    found = text_logprobs(part, 0, tokenizer, tokenizer.token_text)
    assert len(found["tokens"]) == len(found["text_offset"])
    assert found["text_offset"] == sorted(found["text_offset"])
    assert max(found["text_offset"]) <= len(part.text)
    for name, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if not name.startswith("bytes:") and (echo or name != "<s>"):
            assert part.text.startswith((name, name.removeprefix(" ")), offset), (name, offset)


def test_bytes_join_to_the_text(tokenizer: Tokenizer) -> None:
    part = choice_part(tokenizer, 2, echo=False)
    content = chat_logprobs(part.tokens, 0, tokenizer, tokenizer.token_text)["content"]
    joined = b"".join(bytes(entry["bytes"]) for entry in content)
    assert joined.decode() == part.text
    assert [entry["token"] for entry in content][-4:] == [
        r"bytes:\xe2", r"bytes:\x98", r"bytes:\x83", "\n",
    ]  # fmt: skip

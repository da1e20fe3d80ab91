"""The model card's samples (MODEL.md, "The card's samples") after `import engine.hf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import engine.hf
from support.family import write_family
from support.reference_logits import assert_greedy

DEMO = Path(engine.hf.__file__).parents[1] / "demo"


@pytest.fixture(scope="module")
def full_depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 layers, as published."""
    path = tmp_path_factory.mktemp("card") / "bitskip-v1-earlyexit"
    return write_family(path, num_layers=24, max_position_embeddings=512, eos_token_ids=())


@pytest.mark.parametrize(
    ("name", "half", "exits"), [("full_depth", 12, [6, 12, 18, 24]), ("demo", 6, [3, 6, 9, 12])]
)
def test_the_samples(
    name: str, half: int, exits: list[int], request: pytest.FixtureRequest
) -> None:
    path = DEMO if name == "demo" else request.getfixturevalue(name)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    outputs = model.generate(**inputs, max_length=100)
    texts = {max(exits): tokenizer.decode(outputs[0])}

    model.set_exit_layer(half)
    outputs = model.generate(**inputs, max_length=100)
    texts[half] = tokenizer.decode(outputs[0])

    num_prompt_tokens = inputs["input_ids"].shape[1]
    for exit_layer in exits:
        model.set_exit_layer(exit_layer)
        outputs = model.generate(**inputs, max_length=100)
        text = tokenizer.decode(outputs[0])
        assert text.startswith("Once upon a time")
        assert texts.setdefault(exit_layer, text) == text
        tokens = outputs[0].tolist()
        ended = tokens[-1] == model.generation_config.eos_token_id
        assert len(tokens) == 100 or (ended and len(tokens) < 100)
        assert_greedy(path, tokens, num_prompt_tokens, exit_layer)
    assert len(set(texts.values())) == len(exits)
    assert model.config.num_hidden_layers == max(exits)


def test_the_demo_tells_stories() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(str(DEMO))
    tokenizer = AutoTokenizer.from_pretrained(str(DEMO))
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=30)[0])
    assert text.startswith("Once upon a time, there was a")

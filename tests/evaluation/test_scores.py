"""What `bitskip eval` reports, by exit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from engine.build import LoadedModel
from engine.errors import ConfigError
from engine.evaluation.scores import ModelScores, score_model
from engine.tokenizer import Tokenizer
from support.fake_backend import FakeBackend, fake_config
from support.oracle import logits_from_scratch
from support.tokenizers import write_tokenizer

VOCAB_SIZE = 300
END = VOCAB_SIZE - 1
DOCUMENTS = [
    "Once upon a time there was a cat that was in the garden.",
    "Hé! 😀",
    "the and ing of to er in ion was that " * 3,
]
NO_EOS: Mapping[int, float] = {END: -1000.0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer.from_directory(write_tokenizer(path, VOCAB_SIZE))


def model(tokenizer: Tokenizer, context: int = 256, **options: Any) -> LoadedModel:
    """A fake model of 6 layers."""
    config = fake_config(
        vocab_size=VOCAB_SIZE, max_position_embeddings=context, eos_token_ids=(END,)
    )
    return LoadedModel(config, tokenizer, FakeBackend(config, **options))


def obvious_perplexity(loaded: LoadedModel, depth: int) -> tuple[float, int]:
    """Perplexity and tokens, each token predicted from scratch.

    A token sees what precedes it in its document, back to the last multiple of context − 1.
    """
    stride = loaded.config.max_position_embeddings - 1
    losses: list[float] = []
    for document in DOCUMENTS:
        tokens = [END, *loaded.tokenizer.encode(document), END]
        for index in range(1, len(tokens)):
            start = (index - 1) // stride * stride
            logits = logits_from_scratch(loaded.backend, tokens[start:index], depth)
            wide = logits.astype(np.float64)
            losses.append(float(np.log(np.exp(wide).sum()) - wide[tokens[index]]))
    return math.exp(sum(losses) / len(losses)), len(losses)


def by_exit(report: ModelScores) -> dict[int, Any]:
    return {score.exit_layer: score for score in report.exits}


@pytest.mark.parametrize("context", [17, 32, 256])
def test_every_token_is_predicted_once_from_its_window(tokenizer: Tokenizer, context: int) -> None:
    loaded = model(tokenizer, context)
    report = score_model(loaded, DOCUMENTS, exits=(2,), num_prompts=1, num_new_tokens=2)
    num_bytes = sum(len(document.encode()) for document in DOCUMENTS)
    for depth, score in by_exit(report).items():
        perplexity, num_tokens = obvious_perplexity(loaded, depth)
        assert score.perplexity == pytest.approx(perplexity)
        bits = num_tokens * math.log2(perplexity) / num_bytes
        assert score.bits_per_byte == pytest.approx(bits)
        assert report.num_tokens == num_tokens
    assert (report.num_documents, report.num_bytes) == (3, num_bytes)


def test_fields_of_a_report(tokenizer: Tokenizer) -> None:
    loaded = model(tokenizer, logit_bias=NO_EOS)
    report = score_model(
        loaded, DOCUMENTS, exits=(4, 2), num_prompts=2, num_new_tokens=21, num_speculations=3
    )
    scores = by_exit(report)
    assert list(scores) == [2, 4, 6]
    assert report.num_speculations == 3
    assert report.num_generated_tokens == 2 * 21, "two prompts, no early end; every exit the same"
    assert scores[6].agreement == 1.0
    assert scores[6].draft_acceptance_rate is scores[6].mean_acceptance_length is None
    for exit_layer in (2, 4):
        score = scores[exit_layer]
        assert 0.0 < score.agreement < 1.0
        assert 0.0 < score.draft_acceptance_rate < 1.0
        assert 1.0 < score.mean_acceptance_length < 4.0
    as_read = json.loads(json.dumps(report.to_dict()))
    assert [score["exit_layer"] for score in as_read["exits"]] == [2, 4, 6]
    assert as_read["exits"][0]["perplexity"] == scores[2].perplexity


@pytest.mark.parametrize("num_speculations", [1, 4])
def test_drafts_that_agree_are_all_accepted(tokenizer: Tokenizer, num_speculations: int) -> None:
    loaded = model(tokenizer, agreement=1.0, logit_bias=NO_EOS)
    # One token comes from the prompt; the rest fills whole rounds.
    num_new_tokens = 1 + 6 * (num_speculations + 1)
    report = score_model(
        loaded, DOCUMENTS, num_speculations=num_speculations, num_new_tokens=num_new_tokens
    )
    scores = by_exit(report)
    assert list(scores) == [1, 3, 4, 6]
    for exit_layer in (1, 3, 4):
        assert scores[exit_layer].agreement == 1.0
        assert scores[exit_layer].draft_acceptance_rate == 1.0
        assert scores[exit_layer].mean_acceptance_length == 1.0 + num_speculations


def test_drafts_that_never_agree_are_all_rejected(tokenizer: Tokenizer) -> None:
    loaded = model(tokenizer, agreement=0.0, logit_bias=NO_EOS)
    score = by_exit(score_model(loaded, DOCUMENTS, exits=(3,), num_new_tokens=30))[3]
    assert score.draft_acceptance_rate < 0.15
    assert score.mean_acceptance_length == pytest.approx(1.0, abs=0.5)


def test_nothing_drafted_is_no_figure(tokenizer: Tokenizer) -> None:
    # Every answer is the end of text at once: there is no round to draft in.
    loaded = model(tokenizer, logit_bias={END: 200.0})
    score = by_exit(score_model(loaded, DOCUMENTS, exits=(3,)))[3]
    assert score.draft_acceptance_rate is score.mean_acceptance_length is None


def test_a_short_context_limits_what_is_drafted(tokenizer: Tokenizer) -> None:
    report = score_model(model(tokenizer, 32, logit_bias=NO_EOS), DOCUMENTS[:1], exits=(3,))
    assert report.num_generated_tokens == 16


@pytest.mark.parametrize("exits", [(0,), (7,), (2, -1)])
def test_refuses_exits_that_the_model_lacks(tokenizer: Tokenizer, exits: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"does not lie in 1\.\.6"):
        score_model(model(tokenizer), DOCUMENTS, exits=exits)


def test_refuses_to_evaluate_on_nothing(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="no document"):
        score_model(model(tokenizer), [])
    config = fake_config(vocab_size=VOCAB_SIZE)
    without_eos = LoadedModel(config, tokenizer, FakeBackend(config))
    with pytest.raises(ConfigError, match="no token to predict"):
        score_model(without_eos, ["x"])

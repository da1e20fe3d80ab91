"""The bundled demo model, served as `bitskip serve` without a MODEL serves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.build import LoadedModel, demo_model_path, load_model
from engine.checkpoint.loader import load_checkpoint
from engine.config import EngineConfig
from engine.documents import read_documents
from engine.evaluation.scores import score_model
from support.served_process import ServedProcess, serving
from support.sse import joined_text, parse_events

HELDOUT = Path(__file__).parents[1] / "data" / "heldout_stories.txt"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    """A server that was given no model."""
    assert (demo_model_path() / "config.json").exists(), "the demo model is not in the tree"
    with serving(None, tmp_path_factory.mktemp("demo") / "demo.log") as running:
        yield running


def stream(served: ServedProcess, **body: Any) -> list[Any]:
    with served.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        return parse_events(b"".join(response.iter_raw()))


def test_a_story_streams(demo: ServedProcess) -> None:
    assert demo.http.get("/v1/models").json()["data"][0]["id"] == "bitskip-demo"
    events = stream(
        demo,
        prompt=PROMPT,
        max_tokens=80,
        temperature=0.6,
        seed=1,
        speculative={"exit_layer": 3, "num_speculations": 4},
        return_metrics=True,
    )
    text = joined_text(events)
    assert len(text.split()) > 20
    # The commonest words of such stories: gibberish would hardly hold them.
    assert {"a", "the", "was"} <= set(text.lower().split())
    metrics = events[-1]["metrics"]
    assert metrics["exit_layer"] == 12
    figures = metrics["speculative_decoding"]
    assert figures["draft_exit_layer"] == 3
    # A trained exit is right far more often than chance, and far from always.
    assert 0.2 < figures["draft_acceptance_rate"] < 1
    assert 1 < figures["mean_acceptance_length"] <= 5


def test_drafts_change_no_token_of_a_story(demo: ServedProcess) -> None:
    for sampling in ({"temperature": 0}, {"seed": 3}):
        body = {"prompt": PROMPT, "max_tokens": 40, **sampling}
        plain = demo.complete(**body, speculative=False)
        for depth in (1, 3, 6):
            drafted = demo.complete(**body, speculative={"exit_layer": depth})
            assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]


def test_half_the_layers_answer(demo: ServedProcess) -> None:
    body = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "return_metrics": True}
    half = demo.complete(**body, exit_layer=6)
    assert half["metrics"]["exit_layer"] == 6
    assert len(half["choices"][0]["text"].split()) > 10
    assert half["choices"][0]["text"] != demo.complete(**body)["choices"][0]["text"]


def test_a_conversation_is_one_text(demo: ServedProcess) -> None:
    """The answer goes on with the messages, as a completion of the same text does."""
    options = {"max_tokens": 30, "temperature": 0}
    messages = [{"role": "user", "content": PROMPT}]
    url = "/v1/chat/completions"
    for text in (PROMPT, ""):
        answer = demo.http.post(url, json={"messages": messages, **options}).json()
        said = answer["choices"][0]["message"]
        text = text or "".join(message["content"] for message in messages[:2]) + "\nThe end?"
        assert said["content"] == demo.complete(prompt=text, **options)["choices"][0]["text"]
        messages = [*messages, said, {"role": "user", "content": "The end?"}]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(demo_model_path(), EngineConfig(), threads=1)


def test_the_demo_is_packed() -> None:
    with load_checkpoint(demo_model_path()) as checkpoint:
        assert checkpoint.is_packed


def test_deeper_exits_read_better(loaded: LoadedModel) -> None:
    documents = read_documents(HELDOUT)[:6]
    assert len(documents) == 6
    report = score_model(loaded, documents, exits=(3, 6, 9, 12), num_prompts=2, num_new_tokens=16)
    assert [score.exit_layer for score in report.exits] == [3, 6, 9, 12]
    perplexities = [score.perplexity for score in report.exits]
    assert perplexities == sorted(perplexities, reverse=True)
    agreements = [score.agreement for score in report.exits]
    assert agreements == sorted(agreements) and agreements[-1] == 1
    # A uniform guess would be at the size of the vocabulary.
    assert perplexities[0] < 60
    assert all(0.2 < (s.draft_acceptance_rate or 0) <= 1 for s in report.exits[:-1])

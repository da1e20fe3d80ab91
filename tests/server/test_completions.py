"""POST /v1/completions, answered whole and as a stream."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest
from openai import OpenAI

from support.fake_async_engine import DEFAULT_TEXT, EOS, FakeAsyncEngine
from support.live_server import LiveServer, live_server
from support.sse import joined_text, parse_events

NUM_TOKENS = len(DEFAULT_TEXT.encode()) + 1  # EOS included


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 100, **body})
    assert response.status_code == 200, response.text
    return response.json()


def stream(client: httpx.Client, **body: Any) -> list[Any]:
    body = {"prompt": "hi", "max_tokens": 100, "stream": True, **body}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse_events(response.content)


def test_answers_in_openais_form(client: httpx.Client) -> None:
    answer = complete(client)
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert answer["system_fingerprint"].startswith("fp_")
    assert answer["choices"] == [
        {
            "index": 0,
            "text": DEFAULT_TEXT,
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": NUM_TOKENS,
        "total_tokens": 2 + NUM_TOKENS,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {
            "accepted_prediction_tokens": 6,
            "rejected_prediction_tokens": 4,
        },
    }


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hé", [tuple("hé".encode())]),
        (["a", "bc"], [(97,), (98, 99)]),
        ([97, 98, EOS], [(97, 98, EOS)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_takes_all_four_forms_of_prompt(
    server: LiveServer, client: httpx.Client, prompt: object, expected: list[tuple[int, ...]]
) -> None:
    before = len(server.engine.submitted)
    answer = complete(client, prompt=prompt, n=2)
    assert [item[1] for item in server.engine.submitted[before:]] == expected
    # Index = prompt number × n + i.
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(expected)))
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [DEFAULT_TEXT, f"1:{DEFAULT_TEXT}"] * len(expected)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))


@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"max_tokens": 5},
        {"max_tokens": 0},
        {"n": 3},
        {"prompt": ["one", "two"], "n": 2},
        {"echo": True},
        {"stop": ["日本"]},
        {"stop": "日本", "include_stop_str_in_output": True},
        {"stop_token_ids": [ord("5")]},
    ],
)
def test_stream_and_whole_answer_agree(client: httpx.Client, extras: dict[str, Any]) -> None:
    whole, events = complete(client, **extras), stream(client, **extras)
    for choice in whole["choices"]:
        assert joined_text(events, choice["index"]) == choice["text"]
        parts = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        for key in ("finish_reason", "stop_reason"):
            assert parts[-1][key] == choice[key]
            assert all(part[key] is None for part in parts[:-1])
        # No chunk without text but one that ends a choice, no character split.
        assert all(part["text"] for part in parts[:-1])
        assert "\ufffd" not in choice["text"] or extras.get("max_tokens") == 5


def test_stream_has_no_chunk_that_nobody_asked_for(client: httpx.Client) -> None:
    events = stream(client)
    assert all(len(event["choices"]) == 1 and "usage" not in event for event in events)
    assert len({event["id"] for event in events}) == 1


def test_usage_comes_in_one_more_chunk(client: httpx.Client) -> None:
    events = stream(client, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == complete(client)["usage"]
    assert all(event["usage"] is None for event in events[:-1])


def test_continuous_usage_counts_up(client: httpx.Client) -> None:
    events = stream(client, stream_options={"continuous_usage_stats": True})
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == NUM_TOKENS
    assert all(event["choices"] for event in events)


def test_echo_puts_the_prompt_first(client: httpx.Client) -> None:
    answer = complete(client, prompt=[104, 105, EOS], echo=True, max_tokens=0)
    assert answer["choices"][0]["text"] == "hi<|endoftext|>"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert complete(client, max_tokens=0)["choices"][0]["text"] == ""


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs_scores_the_prompt(max_tokens: int) -> None:
    # A text of nothing: the one token sampled is EOS.
    with live_server(FakeAsyncEngine("")) as server, httpx.Client(base_url=server.url) as client:
        body = {"prompt": "h€a", "echo": True, "logprobs": 2, "max_tokens": max_tokens}
        choice = complete(client, **body)["choices"][0]
        streamed = stream(client, **body)[0]["choices"][0]
    assert streamed == choice
    logprobs = choice["logprobs"]
    tokens = ["h", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "a", "<|endoftext|>"]
    assert logprobs["tokens"] == tokens[: 5 + max_tokens]
    assert all(len(values) == 5 + max_tokens for values in logprobs.values())
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 1, 1, 1, 2, 3][: 5 + max_tokens]
    assert choice["text"] == "h€a"


def test_logprobs_cover_every_token(client: httpx.Client) -> None:
    choice = complete(client, logprobs=2)["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][-1] == "<|endoftext|>"
    assert all(len(values) == NUM_TOKENS for values in logprobs.values())
    for name, value, top, offset in zip(*logprobs.values(), strict=True):
        assert top[name] == value
        assert len(top) == 3
        assert 0 <= offset <= len(choice["text"])
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert logprobs["token_logprobs"][logprobs["tokens"].index("a")] == -9999.0


def test_logprobs_zero_report_the_chosen_token_alone(client: httpx.Client) -> None:
    logprobs = complete(client, logprobs=0)["choices"][0]["logprobs"]
    assert all(len(top) == 1 for top in logprobs["top_logprobs"])


@pytest.mark.parametrize("extras", [{}, {"echo": True}, {"stop": "日本"}])
def test_streamed_logprobs_join_to_the_whole(client: httpx.Client, extras: dict[str, Any]) -> None:
    whole = complete(client, logprobs=1, **extras)["choices"][0]["logprobs"]
    events = stream(client, logprobs=1, **extras)
    for key, values in whole.items():
        parts = [event["choices"][0]["logprobs"][key] for event in events]
        assert [value for part in parts for value in part] == values


def test_token_sources_spell_the_text(client: httpx.Client) -> None:
    choice = complete(client, return_token_sources=True)["choices"][0]
    assert len(choice["token_sources"]) == NUM_TOKENS
    for part in [
        choice,
        *(event["choices"][0] for event in stream(client, return_token_sources=True)),
    ]:
        assert "".join(token["text"] for token in part["token_sources"]) == part["text"]
    sources = {token["source"] for token in choice["token_sources"]}
    assert sources == {"draft", "corrected", "bonus", "plain"}
    assert choice["token_sources"][0] == {"token_id": ord("G"), "text": "G", "source": "draft"}


def test_metrics_stand_where_the_contract_says(client: httpx.Client) -> None:
    answer = complete(client, return_metrics=True, seed=40, exit_layer=6)
    assert answer["metrics"] == answer["choices"][0]["metrics"]
    metrics = answer["metrics"]
    assert metrics["exit_layer"] == 6 and metrics["seed"] == 40
    assert metrics["time_to_first_token_ms"] == 10 and metrics["queue_time_ms"] == 1
    assert metrics["generation_time_ms"] == 500 and metrics["mean_itl_ms"] == 20
    assert metrics["tokens_per_second"] > 0
    assert metrics["speculative_decoding"] == {
        "draft_exit_layer": 2,
        "num_drafts": 4,
        "num_draft_tokens": 10,
        "num_accepted_tokens": 6,
        "draft_acceptance_rate": 0.6,
        "mean_acceptance_length": 2.5,
        "accepted_per_position": [4, 2],
    }
    several = complete(client, return_metrics=True, n=2)
    assert "metrics" not in several
    assert all("metrics" in choice for choice in several["choices"])


def test_streamed_metrics_come_with_the_finish_reason(client: httpx.Client) -> None:
    events = stream(client, return_metrics=True, n=2)
    for event in events:
        finished = event["choices"][0]["finish_reason"] is not None
        assert ("metrics" in event) == finished
        assert "metrics" not in event["choices"][0]
    assert sum("metrics" in event for event in events) == 2


def test_texts_with_odd_line_breaks_stay_on_one_line() -> None:
    text = "a\u2028b\x85c\nd\r\n\u2029e"
    with live_server(FakeAsyncEngine(text)) as server, httpx.Client(base_url=server.url) as client:
        response = client.post(
            "/v1/completions", json={"prompt": "hi", "max_tokens": 50, "stream": True}
        )
    assert joined_text(parse_events(response.content)) == text
    assert all(line.startswith("data: ") for line in response.text.splitlines() if line)


def test_official_client_understands_both_ways(server: LiveServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai:
        assert [model.id for model in openai.models.list()] == ["tiny", "tiny-alias"]
        whole = openai.completions.create(
            model="tiny", prompt="hi", max_tokens=100, logprobs=2, user="me"
        )
        assert whole.choices[0].text == DEFAULT_TEXT
        assert whole.usage is not None and whole.usage.completion_tokens == NUM_TOKENS
        chunks = list(
            openai.completions.create(
                model="tiny-alias",
                prompt="hi",
                max_tokens=100,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"exit_layer": 4, "speculative": {"exit_layer": 2}},
            )
        )
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == DEFAULT_TEXT
    assert chunks[-1].usage is not None and not chunks[-1].choices
    assert chunks[0].model == "tiny-alias"
    assert math.isclose(chunks[-1].usage.total_tokens, 2 + NUM_TOKENS)

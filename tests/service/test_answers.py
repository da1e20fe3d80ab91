"""What a served model answers: the same tokens whole, streamed, drafted for, and in company."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from engine.tokenizer import Tokenizer
from support.served_process import NUM_LAYERS, ServedProcess
from support.sse import joined_text, parse_events

PROMPT = "Once upon a time"
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": -1, "presence_penalty": 0.5},
)
DRAFTINGS: tuple[Any, ...] = (
    True,
    "auto",
    {"exit_layer": 1, "num_speculations": 3},
    {"exit_layer": 3, "num_speculations": 8},
    {"exit_layer": 5, "num_speculations": 16, "method": "early_exit"},
    {"method": "ngram", "num_speculations": 4},
)


def answer_tokens(response: dict[str, Any]) -> list[int]:
    return [token["token_id"] for token in response["choices"][0]["token_sources"]]


def request(**extras: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": 40, "return_token_sources": True} | extras


def stream(served: ServedProcess, **body: Any) -> list[Any]:
    with served.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        return parse_events(b"".join(response.iter_raw()))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("exit_layer", [2, NUM_LAYERS])
def test_drafting_changes_no_token(
    served: ServedProcess, sampling: dict[str, Any], exit_layer: int
) -> None:
    body = request(**sampling, exit_layer=exit_layer, ignore_eos=True, return_metrics=True)
    plain = served.complete(**body, speculative=False)
    assert plain["metrics"]["speculative_decoding"] is None
    assert len(answer_tokens(plain)) == 40
    for drafting in DRAFTINGS:
        if isinstance(drafting, dict) and drafting.get("exit_layer", 0) >= exit_layer:
            continue
        drafted = served.complete(**body, speculative=drafting)
        assert answer_tokens(drafted) == answer_tokens(plain), drafting
        assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]


def test_acceptance_is_told(served: ServedProcess) -> None:
    response = served.complete(
        **request(temperature=0, ignore_eos=True, return_metrics=True),
        speculative={"exit_layer": 3, "num_speculations": 4},
    )
    figures = response["metrics"]["speculative_decoding"]
    assert response["metrics"]["exit_layer"] == NUM_LAYERS
    assert figures["draft_exit_layer"] == 3
    assert 0 < figures["num_accepted_tokens"] <= figures["num_draft_tokens"]
    assert figures["num_drafts"] + figures["num_accepted_tokens"] <= 40
    assert sum(figures["accepted_per_position"]) == figures["num_accepted_tokens"]
    assert len(figures["accepted_per_position"]) <= 4
    rate = figures["num_accepted_tokens"] / figures["num_draft_tokens"]
    assert figures["draft_acceptance_rate"] == pytest.approx(rate)
    details = response["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == figures["num_accepted_tokens"]
    assert sum(details.values()) == figures["num_draft_tokens"]
    sources = [token["source"] for token in response["choices"][0]["token_sources"]]
    assert sources.count("draft") == figures["num_accepted_tokens"]
    assert response["usage"]["completion_tokens"] == 40


@pytest.mark.parametrize("sampling", SAMPLINGS[::2])
@pytest.mark.parametrize(
    "extras", [{}, {"logprobs": 2}, {"n": 2}, {"echo": True, "logprobs": 1}, {"stop": ["e"]}]
)
def test_a_stream_brings_what_a_whole_answer_does(
    served: ServedProcess, sampling: dict[str, Any], extras: dict[str, Any]
) -> None:
    body = request(**sampling, **extras, max_tokens=20, stream_options={"include_usage": True})
    events = stream(served, **body)
    del body["stream_options"]
    whole = served.complete(**body)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    chunks = [choice for event in events[:-1] for choice in event["choices"]]
    assert chunks
    for choice in whole["choices"]:
        mine = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert joined_text(events, choice["index"]) == choice["text"]
        assert [chunk["finish_reason"] for chunk in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        assert mine[-1]["stop_reason"] == choice["stop_reason"]
        sources = chain.from_iterable(chunk["token_sources"] for chunk in mine)
        assert ids_of(sources) == ids_of(choice["token_sources"])
        if choice["logprobs"] is not None:
            for part, values in choice["logprobs"].items():
                assert list(chain.from_iterable(c["logprobs"][part] for c in mine)) == values


def ids_of(sources: Iterable[dict[str, Any]]) -> list[int]:
    return [source["token_id"] for source in sources]


def test_eight_at_once_are_answered_as_one_by_one(served: ServedProcess) -> None:
    bodies = [
        request(
            prompt=f"{PROMPT} number {number}" * (1 + number % 3),
            exit_layer=(None, 2, 4, 6)[number % 4],
            speculative=(None, False, {"num_speculations": 8}, True)[number // 2],
            temperature=0 if number % 2 else 1,
            seed=number,
            logprobs=1,
        )
        for number in range(8)
    ]
    alone = [served.complete(**body)["choices"] for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: served.complete(**body)["choices"], bodies))

    def facts(choices: list[dict[str, Any]]) -> list[Any]:
        return [(c["text"], ids_of(c["token_sources"]), c["logprobs"]) for c in choices]

    for one, other in zip(alone, together, strict=True):
        assert facts(one) == facts(other)


def test_exits_answer_as_different_models(served: ServedProcess) -> None:
    by_depth = {
        depth: served.complete(**request(temperature=0, exit_layer=depth, return_metrics=True))
        for depth in (1, 3, NUM_LAYERS)
    }
    assert {depth: r["metrics"]["exit_layer"] for depth, r in by_depth.items()} == {
        depth: depth for depth in by_depth
    }
    assert len({tuple(answer_tokens(r)) for r in by_depth.values()}) == 3
    default = served.complete(**request(temperature=0))
    assert answer_tokens(default) == answer_tokens(by_depth[NUM_LAYERS])


def test_metrics_tell_the_exits_apart(served: ServedProcess) -> None:
    before = served.metrics()
    for depth in (2, 5):
        body = request(temperature=0, exit_layer=depth, ignore_eos=True)
        served.complete(**body, speculative=False)
        served.complete(**body, speculative={"exit_layer": 1, "num_speculations": 2})
    after = served.metrics()

    def gained(name: str, **labels: object) -> float:
        key = (name, *sorted(f"{label}={value}" for label, value in labels.items()))
        return after.get(key, 0.0) - before.get(key, 0.0)

    for depth in (2, 5):
        sources = {
            source: gained("bitskip_generation_tokens_total", exit_layer=depth, source=source)
            for source in ("plain", "draft", "corrected", "bonus")
        }
        assert sum(sources.values()) == 80 and sources["plain"] >= 40
        assert gained("bitskip_pass_seconds_count", phase="decode", exit_layer=depth) > 0
        assert gained("bitskip_pass_seconds_count", phase="verify", exit_layer=depth) > 0
        for speculative in ("true", "false"):
            for series in ("time_to_first_token", "request_e2e", "request_decode"):
                name = f"bitskip_{series}_seconds_count"
                assert gained(name, exit_layer=depth, speculative=speculative) == 1, name
            name = "bitskip_inter_token_latency_seconds_count"
            assert gained(name, exit_layer=depth, speculative=speculative) > 0
    assert gained("bitskip_pass_seconds_count", phase="draft", exit_layer=1) > 0
    assert gained("bitskip_spec_decode_num_drafts_total", exit_layer=1) > 0
    assert gained("bitskip_request_success_total", finished_reason="length") == 4


def test_curl_without_a_content_type(served: ServedProcess) -> None:
    content = (
        b'{"prompt":"Once upon a time","max_tokens":80,"stream":true,'
        b'"speculative":{"exit_layer":3,"num_speculations":4},"return_metrics":true}'
    )
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = httpx.post(f"{served.url}/v1/completions", content=content, headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parse_events(response.content)
    assert events[-1]["choices"][0]["finish_reason"] in ("length", "stop")
    figures = events[-1]["metrics"]["speculative_decoding"]
    assert figures["draft_exit_layer"] == 3 and figures["num_draft_tokens"] > 0


def test_the_openai_client_unchanged(served: ServedProcess) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        assert model == "tiny"
        arguments: dict[str, Any] = {
            "model": model,
            "prompt": PROMPT,
            "max_tokens": 12,
            "seed": 5,
            "extra_body": {
                "exit_layer": 4,
                "speculative": {"exit_layer": 2, "num_speculations": 4},
                "return_metrics": True,
            },
        }
        whole = client.completions.create(**arguments)
        chunks = list(
            client.completions.create(
                **arguments, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
        assert chunks[-1].usage is not None and whole.usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert whole.model_extra is not None
        assert whole.model_extra["metrics"]["exit_layer"] == 4
        with pytest.raises(openai.BadRequestError) as refusal:
            client.completions.create(model=model, prompt=PROMPT, extra_body={"exit_layer": 99})
        assert refusal.value.param == "exit_layer"


def test_choices_replay_by_their_seeds(served: ServedProcess) -> None:
    both = served.complete(**request(n=2, return_metrics=True))
    texts = [choice["text"] for choice in both["choices"]]
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert texts[0] != texts[1]
    for choice in both["choices"]:
        replayed = served.complete(**request(seed=choice["metrics"]["seed"], speculative=False))
        assert replayed["choices"][0]["text"] == choice["text"]


def test_ids_and_text_and_batches_are_the_same_prompt(
    served: ServedProcess, packed_model: Path
) -> None:
    options = {"temperature": 0, "max_tokens": 8}
    ids = Tokenizer.from_directory(packed_model).encode(PROMPT)
    text = served.complete(prompt=PROMPT, **options)["choices"][0]["text"]
    assert served.complete(prompt=ids, **options)["choices"][0]["text"] == text
    other = served.complete(prompt="Other", **options)["choices"][0]["text"]
    batch = served.complete(prompt=[PROMPT, "Other"], **options)
    assert [choice["text"] for choice in batch["choices"]] == [text, other]
    of_ids = served.complete(prompt=[ids, ids[:2]], **options, n=2)
    assert [choice["index"] for choice in of_ids["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in of_ids["choices"][:2]] == [text, text]
    assert of_ids["usage"]["prompt_tokens"] == len(ids) + 2


def test_scoring_a_prompt(served: ServedProcess) -> None:
    response = served.complete(prompt=PROMPT, max_tokens=0, echo=True, logprobs=2)
    (choice,) = response["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == PROMPT == "".join(logprobs["tokens"])
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert response["usage"]["completion_tokens"] == 0
    longer = served.complete(
        prompt=PROMPT, max_tokens=1, echo=True, logprobs=2, temperature=0, speculative=True
    )
    scored = longer["choices"][0]["logprobs"]
    assert scored["token_logprobs"][: len(logprobs["tokens"])] == logprobs["token_logprobs"]
    assert len(scored["tokens"]) == len(logprobs["tokens"]) + 1


def test_a_stop_string_is_cut(served: ServedProcess) -> None:
    text = served.complete(**request(temperature=0))["choices"][0]["text"]
    stop = text[10:12]
    (choice,) = served.complete(**request(temperature=0, stop=[stop, "\0never"]))["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    (kept,) = served.complete(**request(temperature=0, stop=stop, include_stop_str_in_output=True))[
        "choices"
    ]
    assert kept["text"] == choice["text"] + stop


def test_logit_bias_forces_a_token(served: ServedProcess) -> None:
    response = served.complete(**request(max_tokens=5, logit_bias={"65": 100, "66": -100}))
    assert answer_tokens(response) == [65] * 5


def test_a_prompt_seen_before_comes_from_the_cache(served: ServedProcess) -> None:
    body = {"prompt": list(range(40, 140)), "max_tokens": 4, "temperature": 0}
    first, second = served.complete(**body), served.complete(**body)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 96
    assert first["choices"][0]["text"] == second["choices"][0]["text"]

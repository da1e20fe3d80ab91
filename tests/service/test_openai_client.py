"""The official client, unchanged: both endpoints, whole and streamed, at once and in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from support.fake_async_engine import ByteTokenizer, FakeAsyncEngine
from support.live_server import LiveServer, live_server
from support.served_process import NUM_LAYERS, ServedProcess

PROMPT = "Once upon a time"
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
]
EXTRAS: dict[str, Any] = {
    "exit_layer": 4,
    "speculative": {"exit_layer": 2, "num_speculations": 3},
    "return_metrics": True,
    "return_token_ids": True,
    "ignore_eos": True,
}
SAMPLING: dict[str, Any] = {"max_tokens": 16, "temperature": 0.7, "seed": 5, "extra_body": EXTRAS}


@pytest.fixture(scope="module")
def client(chatty: ServedProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{chatty.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def async_client(served: ServedProcess) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


# --- answers ---------------------------------------------------------------------------------


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    assert model.model_extra is not None and model.model_extra["num_layers"] == NUM_LAYERS


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=[PROMPT, "The dog"], n=2, logprobs=2, **SAMPLING
    )
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    first = answer.choices[0]
    assert first.finish_reason == "length" and first.logprobs is not None
    assert first.logprobs.tokens is not None and len(first.logprobs.tokens) == 16
    assert answer.usage is not None and answer.usage.completion_tokens == 64
    details = answer.usage.completion_tokens_details
    assert details is not None and details.accepted_prediction_tokens is not None
    assert first.model_extra is not None
    assert first.model_extra["metrics"]["exit_layer"] == 4
    assert len(first.model_extra["token_ids"]) == 16


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2, n=2, **SAMPLING
    )
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    for choice in answer.choices:
        assert choice.message.role == "assistant" and choice.message.refusal is None
        assert choice.logprobs is not None and choice.logprobs.content is not None
        spelt = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content)
        assert spelt.decode(errors="replace") == choice.message.content
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    assert answer.usage is not None and answer.usage.completion_tokens == 32
    assert answer.model_extra is not None and answer.model_extra["prompt_token_ids"]


def test_an_answer_goes_back_as_a_message(client: OpenAI) -> None:
    """As the client dumps it, with every field that it knows."""
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, **SAMPLING)
    said: Any = answer.choices[0].message.model_dump()
    again = client.chat.completions.create(
        model="tiny", messages=[*MESSAGES, said, {"role": "user", "content": "Go on."}], **SAMPLING
    )
    assert answer.usage is not None and again.usage is not None
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens + 16


def test_completion_streams(client: OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt=PROMPT, **SAMPLING)
    with client.completions.create(
        model="tiny", prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **SAMPLING
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 16
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-2].model_extra is not None
    assert chunks[-2].model_extra["metrics"]["speculative_decoding"]["draft_exit_layer"] == 2


def test_chat_streams(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, n=2, **SAMPLING)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, n=2, stream=True, **SAMPLING
        )
    )
    for choice in whole.choices:
        deltas = [c.choices[0].delta for c in chunks if c.choices[0].index == choice.index]
        assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
        assert "".join(delta.content or "" for delta in deltas) == choice.message.content


def test_the_clients_own_accumulation_of_a_chat_stream(client: OpenAI) -> None:
    """`chat.completions.stream` is strict about the order and the shape of chunks."""
    options = {**SAMPLING, "logprobs": True, "top_logprobs": 1}
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, **options)
    assert whole.choices[0].model_extra is not None
    # It takes an answer that was cut off for an error.
    last = {"stop_token_ids": [whole.choices[0].model_extra["token_ids"][-1]]}
    options["extra_body"] = EXTRAS | last
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, **options)
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, **options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    logprobs, expected = final.choices[0].logprobs, whole.choices[0].logprobs
    assert logprobs is not None and expected is not None
    assert logprobs.content == expected.content


def test_many_at_once_with_the_async_client(chatty: ServedProcess) -> None:
    async def run() -> None:
        async with async_client(chatty) as client:

            async def whole(seed: int) -> str:
                options: Any = SAMPLING | {"seed": seed}
                answer = await client.chat.completions.create(
                    model="tiny", messages=MESSAGES, **options
                )
                return answer.choices[0].message.content

            async def streamed(seed: int) -> str:
                options: Any = SAMPLING | {"seed": seed, "stream": True}
                stream = await client.chat.completions.create(
                    model="tiny", messages=MESSAGES, **options
                )
                return "".join([c.choices[0].delta.content async for c in stream])

            async def completed() -> str:
                options: Any = SAMPLING | {"stream": True}
                stream = await client.completions.create(model="tiny", prompt=PROMPT, **options)
                return "".join([chunk.choices[0].text async for chunk in stream])

            answers = await asyncio.gather(*map(whole, range(6)), *map(streamed, range(6)))
            assert answers[:6] == answers[6:] and len(set(answers)) == 6
            other = await client.completions.create(model="tiny", prompt=PROMPT, **SAMPLING)
            assert await completed() == other.choices[0].text

    asyncio.run(run())


def test_raw_responses_carry_the_request_id(client: OpenAI) -> None:
    response = client.chat.completions.with_raw_response.create(
        model="tiny", messages=MESSAGES, extra_headers={"x-request-id": "mine"}, **SAMPLING
    )
    assert response.headers["x-request-id"] == "mine"
    assert response.parse().choices[0].message.content


# --- errors ----------------------------------------------------------------------------------

BAD: tuple[tuple[dict[str, Any], type[openai.APIStatusError], str, str | None], ...] = (
    ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found"),
    ({"temperature": -1}, openai.BadRequestError, "temperature", None),
    ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens", "context_length_exceeded"),
    ({"extra_body": {"exit_layer": 99}}, openai.BadRequestError, "exit_layer", None),
    ({"n": 0}, openai.BadRequestError, "n", None),
)


@pytest.mark.parametrize(("change", "kind", "param", "code"), BAD)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_errors_are_the_clients_own_exceptions(
    client: OpenAI,
    endpoint: str,
    stream: bool,
    change: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str,
    code: str | None,
) -> None:
    options: dict[str, Any] = {"model": "tiny", "stream": stream, **change}
    with pytest.raises(kind) as caught:
        if endpoint == "chat":
            client.chat.completions.create(messages=MESSAGES, **options)
        else:
            client.completions.create(prompt=PROMPT, **options)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_what_chat_does_not_do_is_refused_by_name(client: OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[tool])
    image: Any = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
    with pytest.raises(openai.BadRequestError, match="image_url"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": image}])
    with pytest.raises(openai.BadRequestError, match="response_format is not supported"):
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, response_format={"type": "json_object"}
        )


def test_an_error_in_mid_stream_is_raised_after_the_text(chatty: ServedProcess) -> None:
    engine = FakeAsyncEngine(hold_after=4)
    engine.tokenizer = ByteTokenizer("{{ messages[0].content }}")
    with (
        live_server(engine) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        seen = ""
        with pytest.raises(openai.APIError) as caught:
            for chunk in stream:
                seen += chunk.choices[0].delta.content or ""
                if len(seen) == 3:
                    server.call(lambda: engine.fail("shutting down", "shutting_down"))
        assert seen == "Grü"
        assert caught.value.code == "shutting_down"


# --- retries ---------------------------------------------------------------------------------


class Moody:
    """Lets the server refuse the first requests, as it does when it is about to go."""

    def __init__(self, server: LiveServer, num_refusals: int) -> None:
        self.num_requests = 0
        self._server = server
        self._num_refusals = num_refusals

    def watch(self, _: object) -> None:
        self.num_requests += 1
        refused = self.num_requests <= self._num_refusals
        self._server.engine.status = "draining" if refused else "ready"


@pytest.mark.parametrize(("max_retries", "num_requests"), [(0, 1), (2, 3)])
def test_a_server_that_is_not_ready_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, max_retries: int, num_requests: int
) -> None:
    waits: list[float] = []
    with live_server() as server:
        moody = Moody(server, num_refusals=2)
        http = openai.DefaultHttpxClient(event_hooks={"request": [moody.watch]})
        with (
            OpenAI(
                base_url=f"{server.url}/v1",
                api_key="none",
                max_retries=max_retries,
                http_client=http,
            ) as client,
            monkeypatch.context() as patch,
        ):
            patch.setattr("openai._base_client.time.sleep", waits.append)
            if max_retries == 0:
                with pytest.raises(openai.InternalServerError) as caught:
                    client.completions.create(model="tiny", prompt="hi")
                assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
            else:
                assert client.completions.create(model="tiny", prompt="hi").choices[0].text
    assert moody.num_requests == num_requests
    # The client waits as long as Retry-After says.
    assert waits == [5.0] * max_retries


def test_bad_requests_are_not_asked_again(chatty: ServedProcess) -> None:
    seen: list[object] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [seen.append]})
    with (
        OpenAI(
            base_url=f"{chatty.url}/v1", api_key="none", max_retries=3, http_client=http
        ) as client,
        pytest.raises(openai.BadRequestError),
    ):
        client.completions.create(model="tiny", prompt="hi", temperature=-1)
    assert len(seen) == 1

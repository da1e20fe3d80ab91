"""Every accepted field does what it says: a table of effects that an ignored field would not have.

Each effect is one request with the field and the same one without it. What must be seen in the
first must not be seen in the second, or the test would pass for a server that ignores the field.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from support.answers import Answer, Post, read_answer, stream_text
from support.chat_model import EOS
from support.fields import ROUTES, Route, field_names
from support.live_server import wait_until
from support.served_process import ServedProcess

Body = dict[str, Any]
Seen = Callable[[Answer, Answer], object]
"""(the answer in question, the answer without the field) → whether the effect is there."""

ENDLESS: Body = {"ignore_eos": True}
SAMPLED: Body = {"temperature": 1.0, "seed": 11}
ENDS_AT_ONCE: Body = {"logit_bias": {str(EOS): 100}}
DRAFTED: Body = {
    "speculative": {"exit_layer": 2, "num_speculations": 3},
    "return_metrics": True,
    **ENDLESS,
}


@dataclass(frozen=True, slots=True)
class Effect:
    """What a field changes; `without` is the rest of the request."""

    seen: Seen
    value: Any
    """Or, from the answer without the field, the value."""
    without: Body


def effect(seen: Seen, value: Any, **without: Any) -> Effect:
    return Effect(seen, value, without)


def drafting(seen: Seen, name: str, value: Any, **options: Any) -> Effect:
    """An effect of one option of `speculative`."""
    base = DRAFTED | {"speculative": options}
    return Effect(seen, options | {name: value}, base)


def other_tokens(answer: Answer, plain: Answer) -> bool:
    return answer.ids != plain.ids


def other_prompt(answer: Answer, plain: Answer) -> bool:
    return answer.prompt_ids != plain.prompt_ids


def only(token: int) -> Seen:
    return lambda answer, _: set(answer.ids) == {token}


def speculation(answer: Answer) -> dict[str, Any]:
    return answer.choice["metrics"]["speculative_decoding"] or {"draft_exit_layer": "no drafts"}


def repeats(answer: Answer) -> int:
    return len(answer.ids) - len(set(answer.ids))


def entries(answer: Answer) -> Any:
    """The entries of a choice's logprobs: of a text's tokens, or of a chat's."""
    logprobs = answer.choice["logprobs"]
    return logprobs and (logprobs.get("content") or logprobs["top_logprobs"])


def token_names(answer: Answer) -> list[str]:
    logprobs = answer.choice["logprobs"]
    names = logprobs.get("tokens") or [entry["token"] for entry in logprobs["content"]]
    return list(names)


def scored(answer: Answer) -> Any:
    return (answer.body | answer.choice).get("prompt_logprobs")


def stop_text(plain: Answer) -> str:
    return plain.text[4:6]


def usage_chunks(answer: Answer) -> int:
    return sum(not event["choices"] for event in answer.events)


def usage_along(answer: Answer) -> bool:
    return all(event.get("usage") for event in answer.events)


SHARED: Mapping[str, Effect] = {
    "model": effect(lambda a, _: a.status == 404, "another"),
    "exit_layer": effect(
        lambda a, p: a.body["metrics"]["exit_layer"] == 2 and other_tokens(a, p),
        2,
        return_metrics=True,
    ),
    "speculative": effect(
        lambda a, p: speculation(a)["draft_exit_layer"] == 2 and a.ids[:8] == p.ids[:8],
        {"exit_layer": 2, "num_speculations": 3},
        return_metrics=True,
        speculative=False,
    ),
    "speculative.exit_layer": drafting(
        lambda a, p: speculation(a)["draft_exit_layer"] == 4 and a.ids == p.ids,
        "exit_layer",
        4,
        exit_layer=2,
        num_speculations=3,
    ),
    "speculative.num_speculations": drafting(
        lambda a, p: len(speculation(a)["accepted_per_position"]) == 5 and a.ids == p.ids,
        "num_speculations",
        5,
        exit_layer=2,
        num_speculations=1,
    ),
    "speculative.method": drafting(
        lambda a, p: speculation(a)["draft_exit_layer"] in (None, "no drafts") and a.ids == p.ids,
        "method",
        "ngram",
        num_speculations=3,
        method="early_exit",
    ),
    "return_metrics": effect(lambda a, _: "metrics" in a.body, True),
    "return_token_sources": effect(lambda a, _: "token_sources" in a.choice, True),
    "temperature": effect(other_tokens, 1.5, seed=3),
    "top_p": effect(other_tokens, 1e-6, **SAMPLED),
    "top_k": effect(other_tokens, 1, **SAMPLED),
    "min_p": effect(other_tokens, 1.0, **SAMPLED),
    "presence_penalty": effect(other_tokens, 2.0, max_tokens=60, **ENDLESS),
    "frequency_penalty": effect(
        lambda a, p: repeats(a) < repeats(p), 2.0, max_tokens=60, **ENDLESS
    ),
    "repetition_penalty": effect(
        lambda a, p: repeats(a) < repeats(p), 50.0, max_tokens=60, **ENDLESS
    ),
    "logit_bias": effect(only(65), {"65": 100}),
    "allowed_token_ids": effect(lambda a, _: set(a.ids) <= {65, 66, 67}, [65, 66, 67]),
    "min_tokens": effect(lambda a, _: a.num_tokens == 6, 5, **ENDS_AT_ONCE),
    "ignore_eos": effect(lambda a, _: a.num_tokens == 24, True, **ENDS_AT_ONCE),
    "stop": effect(
        lambda a, p: a.choice["stop_reason"] == stop_text(p) and a.text == p.text[:4], stop_text
    ),
    "stop_token_ids": effect(
        lambda a, p: a.choice["stop_reason"] == p.ids[4], lambda plain: [plain.ids[4]]
    ),
    "include_stop_str_in_output": effect(
        lambda a, p: a.text == p.text + a.choice["stop_reason"], True, stop=["e", "a", "o", "i"]
    ),
    "skip_special_tokens": effect(
        lambda a, _: a.text == "<|endoftext|>" * 2, False, max_tokens=2, **ENDS_AT_ONCE, **ENDLESS
    ),
    "seed": effect(other_tokens, 12, **SAMPLED),
    "n": effect(lambda a, _: len(a.body["choices"]) == 3, 3),
    "stream": effect(lambda a, _: a.content_type == "text/event-stream", True),
    "stream_options": effect(
        lambda a, _: usage_chunks(a) == 1, {"include_usage": True}, stream=True
    ),
    "stream_options.include_usage": effect(
        lambda a, _: usage_chunks(a) == 1, {"include_usage": True}, stream=True, stream_options={}
    ),
    "stream_options.continuous_usage_stats": effect(
        lambda a, _: usage_along(a),
        {"continuous_usage_stats": True},
        stream=True,
        stream_options={},
    ),
    "prompt_logprobs": effect(
        lambda a, _: (
            [len(entry) in (3, 4) for entry in (scored(a) or ["none"])[1:]]
            == [True] * (a.body["usage"]["prompt_tokens"] - 1)
        ),
        3,
    ),
    "truncate_prompt_tokens": effect(lambda a, p: a.prompt_ids == p.prompt_ids[-3:], 3),
    "return_token_ids": effect(
        lambda a, _: "token_ids" in a.choice and "prompt_token_ids" in a.body | a.choice,
        True,
        return_token_ids=None,
    ),
    "return_tokens_as_token_ids": effect(
        lambda a, _: token_names(a) == [f"token_id:{token}" for token in a.ids], True, logprobs=1
    ),
    "request_id": effect(lambda a, _: a.body["id"].split("-", 1)[1] == "mine", "mine"),
}

COMPLETIONS: Mapping[str, Effect] = {
    **SHARED,
    "prompt": effect(other_prompt, "Something else"),
    "max_tokens": effect(lambda a, _: a.num_tokens == 3, 3, **ENDLESS),
    "echo": effect(lambda a, p: a.text.endswith("Once upon a time" + p.text), True),
    "logprobs": effect(
        lambda a, _: {len(top) for top in entries(a) or ()} <= {2, 3} and entries(a), 2
    ),
    "best_of": effect(lambda a, _: a.status == 400, 2),
    "add_special_tokens": effect(lambda a, p: [EOS, *a.prompt_ids] == p.prompt_ids, False),
}

CONVERSATION = [
    {"role": "user", "content": "Once upon"},
    {"role": "assistant", "content": "a time"},
]


def changed(**last: str) -> list[dict[str, str]]:
    return [CONVERSATION[0], CONVERSATION[1] | last]


CHAT: Mapping[str, Effect] = {
    **SHARED,
    "return_tokens_as_token_ids": effect(
        lambda a, _: token_names(a) == [f"token_id:{token}" for token in a.ids],
        True,
        logprobs=True,
    ),
    "messages": effect(other_prompt, CONVERSATION[:1]),
    "messages.role": effect(other_prompt, changed(role="system")),
    "messages.content": effect(other_prompt, changed(content="a day")),
    "messages.name": effect(other_prompt, changed(name="Ann")),
    "max_completion_tokens": effect(
        lambda a, _: a.num_tokens == 3, 3, max_tokens=None, ignore_eos=True, min_tokens=3
    ),
    "max_tokens": effect(lambda a, _: a.num_tokens == 3, 3, **ENDLESS),
    "echo": effect(lambda a, p: a.text == "a time" + p.text, True),
    "logprobs": effect(lambda a, _: len(entries(a) or ()) == a.num_tokens, True),
    "top_logprobs": effect(
        lambda a, _: {len(entry["top_logprobs"]) for entry in entries(a)} == {2}, 2, logprobs=True
    ),
    "add_special_tokens": effect(lambda a, p: a.prompt_ids == [EOS, *p.prompt_ids], True),
    "add_generation_prompt": effect(lambda a, p: a.prompt_ids != p.prompt_ids, False),
    "continue_final_message": effect(other_prompt, True),
    "chat_template_kwargs": effect(other_prompt, {"mood": "merry"}),
}

ORDER = "priority"
"""Shown by the order of several answers: `test_priority_decides_who_is_served_first`."""

TABLES = {"completions": COMPLETIONS, "chat": CHAT}
CASES = [(route, field) for route in ROUTES for field in sorted(TABLES[route.name])]


def least(route: Route) -> Body:
    if route.name == "chat":
        return {"messages": CONVERSATION}
    return {"prompt": "Once upon a time"}


def poster(served: ServedProcess, route: Route) -> Post:
    return lambda body: read_answer(served.http.post(route.path, json=body))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_field_has_an_effect_in_the_table(route: Route) -> None:
    assert {*TABLES[route.name], ORDER} == set(field_names(route.model))


@pytest.mark.parametrize(
    ("route", "field"), CASES, ids=[f"{route.name}-{field}" for route, field in CASES]
)
def test_a_field_has_its_effect(chatty: ServedProcess, route: Route, field: str) -> None:
    case = TABLES[route.name][field]
    post = poster(chatty, route)
    base = {
        **least(route),
        "max_tokens": 24,
        "temperature": 0,
        "return_token_ids": True,
        "speculative": False,
        **case.without,
    }
    plain = post(base)
    assert plain.status == 200, plain.body
    value = case.value(plain) if callable(case.value) else case.value
    answer = post({**base, field.split(".")[0]: value})
    assert case.seen(answer, plain), (value, answer.body, plain.body)
    assert not case.seen(plain, plain), "a server that ignores the field would pass"
    assert post(base).text == plain.text if not plain.events else True


def test_filters_of_one_token_are_greedy(chatty: ServedProcess) -> None:
    post = poster(chatty, ROUTES[0])
    body = {**least(ROUTES[0]), "max_tokens": 24}
    greedy = post({**body, "temperature": 0}).text
    for only_one in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert post({**body, **SAMPLED, **only_one}).text == greedy


def test_drafts_change_no_token_under_any_restriction(chatty: ServedProcess) -> None:
    post = poster(chatty, ROUTES[0])
    body = {
        **least(ROUTES[0]),
        **SAMPLED,
        "max_tokens": 40,
        "allowed_token_ids": list(range(60, 90)),
        "return_token_ids": True,
        "ignore_eos": True,
    }
    plain = post({**body, "speculative": False})
    for speculative in DRAFTED["speculative"], {"method": "ngram", "num_speculations": 4}:
        drafted = post({**body, "speculative": speculative, "return_metrics": True})
        assert drafted.ids == plain.ids
        assert speculation(drafted)["num_draft_tokens"] > 0


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
@pytest.mark.parametrize(("priorities", "first"), [((0, 0), 0), ((5, -5), 1)])
def test_priority_decides_who_is_served_first(
    chatty: ServedProcess, route: Route, priorities: tuple[int, int], first: int
) -> None:
    """One choice runs at a time; two requests wait behind it, and the second may be urgent.

    They share a prompt that nobody else has: who is served first does not find it in the cache.
    """
    body = {**least(route), "ignore_eos": True, "speculative": False, "temperature": 0}
    prompt = f"{priorities}: a story that nobody has told before, nor ever will again"
    messages = [{"role": "user", "content": prompt}]
    shared = {"messages": messages} if route.name == "chat" else {"prompt": prompt}
    num_cached: dict[int, int] = {}

    def ask(number: int) -> None:
        request = {**body, **shared, "max_tokens": 40, "priority": priorities[number]}
        usage = poster(chatty, route)(request).body["usage"]
        num_cached[number] = usage["prompt_tokens_details"]["cached_tokens"]

    def num_arrived() -> float:
        names = ("num_requests_waiting", "num_requests_running", "request_success_total")
        counted = {f"bitskip_{name}" for name in names}
        return sum(value for key, value in chatty.metrics().items() if key[0] in counted)

    # What the test before has left behind would be miscounted.
    wait_until(lambda: chatty.metric("bitskip_num_requests_running") == 0)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    # Far more than there is time for: its choices wait too, until the client leaves.
    num_choices, before = 100, num_arrived()
    long = {**body, "max_tokens": 1900, "n": num_choices, "priority": -9, "stream": True}
    with chatty.http.stream("POST", route.path, json=long) as blocking:
        chunks = blocking.iter_raw()  # Held: the stream is closed with it.
        next(chunks)
        for number, thread in enumerate(threads, start=1):
            thread.start()
            expected = before + num_choices + number
            wait_until(lambda expected=expected: num_arrived() == expected)
    for thread in threads:
        thread.join()
    # Other prompts begin alike, but for less than a block of 16 tokens.
    assert num_cached[first] == 0 and num_cached[1 - first] > 16


def test_stream_and_whole_say_the_same_of_the_prompt(chatty: ServedProcess) -> None:
    for route in ROUTES:
        post = poster(chatty, route)
        body = {**least(route), "max_tokens": 8, "temperature": 0, "return_token_ids": True}
        whole, streamed = post(body), post({**body, "stream": True, "n": 2})
        assert stream_text(streamed.events, 1) == whole.text
        firsts: dict[int, Any] = {}
        for event in streamed.events:
            firsts.setdefault(event["choices"][0]["index"], event | event["choices"][0])
        told = [first for first in firsts.values() if "prompt_token_ids" in first]
        assert [first["prompt_token_ids"] for first in told] == [whole.prompt_ids] * len(told)
        assert len(told) == (2 if route.name == "completions" else 1)

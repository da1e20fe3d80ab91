"""Every field of both bodies over raw HTTP: present, null, of the wrong type, and out of range."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from server.protocol import NO_EFFECT_FIELDS
from support.answers import Answer, read_answer
from support.fields import ROUTES, Route, field_names
from support.served_process import ServedProcess

FIELDS = [(route, field) for route in ROUTES for field in sorted(route.values)]
every_field = pytest.mark.parametrize(
    ("route", "field"), FIELDS, ids=[f"{route.name}-{field}" for route, field in FIELDS]
)
every_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)


def post(served: ServedProcess, route: Route, body: dict[str, Any]) -> Answer:
    # By hand: httpx would refuse to write a lone surrogate.
    return read_answer(served.http.post(route.path, content=json.dumps(body).encode()))


def refusal(served: ServedProcess, route: Route, field: str, value: Any) -> None:
    answer = post(served, route, route.body(field, value))
    assert answer.status == 400, (value, answer.body)
    assert answer.error["type"] == "invalid_request_error"
    # What is wrong inside of an object is named too: messages.content.text.
    param = answer.error["param"] or ""
    assert param == field or param.startswith(f"{field}."), (value, answer.error)
    if answer.error["code"] != "context_length_exceeded":
        # Messages tell the index too: messages.0.content.
        assert re.search(param.replace(".", r"(\.\d+)?\."), answer.error["message"])


@every_route
def test_the_tables_hold_every_field(route: Route) -> None:
    assert set(route.values) == set(field_names(route.model))


@every_field
def test_good_values_are_taken(chatty: ServedProcess, route: Route, field: str) -> None:
    for value in route.values[field].good:
        answer = post(chatty, route, route.body(field, value))
        assert answer.status == 200, (value, answer.body)


@every_field
def test_null_means_not_given(chatty: ServedProcess, route: Route, field: str) -> None:
    answer = post(chatty, route, route.body(field, None))
    if field in ("prompt", "messages", "messages.role", "messages.content"):
        assert answer.status == 400
        assert answer.error["param"] == field
        assert "required" in answer.error["message"]
    else:
        assert answer.status == 200, answer.body


@every_field
def test_wrong_types_are_refused_by_name(chatty: ServedProcess, route: Route, field: str) -> None:
    for value in route.values[field].wrong_type:
        refusal(chatty, route, field, value)


@every_field
def test_impossible_values_are_refused_by_name(
    chatty: ServedProcess, route: Route, field: str
) -> None:
    for value in route.values[field].impossible:
        refusal(chatty, route, field, value)


@every_route
def test_fields_that_are_not_honoured_are_refused_by_name(
    chatty: ServedProcess, route: Route
) -> None:
    for field in route.model.refused:
        answer = post(chatty, route, {**route.least, "max_tokens": 1, field: ["something"]})
        assert (answer.status, answer.error["param"]) == (400, field)
        assert answer.error["message"] == f"{field} is not supported"
        nothing = (None, "", [], {}, *route.model.refused[field])
        for value in nothing:
            answer = post(chatty, route, {**route.least, "max_tokens": 1, field: value})
            assert answer.status == 200, (field, value, answer.body)


@every_route
def test_billing_fields_and_unknown_ones_are_taken(chatty: ServedProcess, route: Route) -> None:
    body = {**route.least, "max_tokens": 2, "temperature": 0}
    plain = post(chatty, route, body)
    for field in (*NO_EFFECT_FIELDS, "frobnicate"):
        answer = post(chatty, route, body | {field: {"any": ["thing"]}})
        assert answer.text == plain.text


@every_route
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_lacks_are_refused(
    chatty: ServedProcess, route: Route, literal: str
) -> None:
    body = json.dumps({**route.least, "temperature": 0}).replace("0}", f"{literal}}}")
    answer = read_answer(chatty.http.post(route.path, content=body.encode()))
    assert (answer.status, answer.error["param"]) == (400, "temperature")


def test_nothing_of_this_was_the_servers_fault(chatty: ServedProcess) -> None:
    assert chatty.metric("bitskip_request_rejected_total", reason="internal_error") == 0
    assert chatty.metric("bitskip_num_requests_running") == 0
    assert "Traceback" not in chatty.log

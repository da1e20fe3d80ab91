"""The document of the interface: sound, true to the server, and shown without the internet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.openapi import REQUEST_MODELS
from server.protocol import NO_EFFECT_FIELDS
from support.answers import read_answer
from support.fields import ROUTES, Route
from support.served_process import ServedProcess


@pytest.fixture(scope="module")
def document(chatty: ServedProcess) -> dict[str, Any]:
    response = chatty.http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    return response.json()


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value
    for child in children if isinstance(value, (dict, list)) else ():
        yield from nodes(child)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = {node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)}
    assert references
    for reference in references:
        name = reference.removeprefix("#/components/schemas/")
        assert name in document["components"]["schemas"], reference


def test_every_post_tells_its_body(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        if "post" in operations:
            content = operations["post"]["requestBody"]["content"]["application/json"]
            assert "$ref" in content["schema"], path


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    ids = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(set(ids)) == len(ids)
    assert "post_v1_chat_completions" in ids and "get_health" in ids


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_field_is_documented(document: dict[str, Any], route: Route) -> None:
    schema = document["components"]["schemas"][route.model.__name__]
    assert set(schema["properties"]) == set(route.model.model_fields)
    ours = ("exit_layer", "speculative", "return_metrics", "return_token_sources")
    for name in ours:
        assert schema["properties"][name]["description"] and schema["properties"][name]["examples"]
    for name, field in schema["properties"].items():
        if name not in schema["required"]:
            options = field.get("anyOf", [field])
            assert any("null" in option.get("type", ()) for option in options), name
    assert not NO_EFFECT_FIELDS & set(schema["properties"])


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_the_examples_are_answered(
    chatty: ServedProcess, document: dict[str, Any], route: Route
) -> None:
    body = document["paths"][route.path]["post"]["requestBody"]["content"]["application/json"]
    assert len(body["examples"]) >= 2
    for name, example in body["examples"].items():
        value = dict(example["value"])
        # The model here has half the demo's layers.
        value["exit_layer"] = min(value.get("exit_layer", 6), 6)
        answer = read_answer(chatty.http.post(route.path, json=value))
        assert answer.status == 200, (name, answer.body)


def test_every_answer_model_is_in_use(document: dict[str, Any]) -> None:
    used = {node["$ref"].rpartition("/")[2] for node in nodes(document) if "$ref" in node}
    assert {*document["components"]["schemas"]} - used == set()
    assert {model.__name__ for model in REQUEST_MODELS} <= used


# --- the page --------------------------------------------------------------------------------


def test_the_page_loads_everything_from_here(chatty: ServedProcess) -> None:
    page = chatty.http.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    addresses += re.findall(r"url: '([^']*)'", page.text)
    assert len(addresses) == 4
    for address in addresses:
        found = chatty.http.get(httpx.URL(f"{chatty.url}/docs").join(address))
        assert found.status_code == 200 and len(found.content) > 100, address
    assert not re.search(r"https?://", page.text)
    assert '"validatorUrl": null' in page.text
    types = [chatty.http.get(f"/docs/{name}").headers["content-type"] for name in FILES]
    assert [kind.split(";")[0] for kind in types] == ["text/javascript", "text/css", "image/png"]


FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..%2f..%2fserver%2fapp.py"])
def test_the_page_has_no_other_files(chatty: ServedProcess, name: str) -> None:
    assert chatty.http.get(f"/docs/{name}").status_code == 404


# --- made-up requests ------------------------------------------------------------------------

FUZZING = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
SHAPE_CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_no_made_up_body_breaks_the_server(
    chatty: ServedProcess, route: Route, mode: GenerationMode
) -> None:
    """Schemathesis: bodies that fit the document, and bodies that do not."""
    schema = schemathesis.openapi.from_url(f"{chatty.url}/openapi.json")
    statuses: Counter[int] = Counter()

    @FUZZING
    @given(case=schema[route.path]["POST"].as_strategy(generation_mode=mode))
    def run(case: Case) -> None:
        bound_work(case)
        response = case.call(timeout=60)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=[not_a_server_error, *SHAPE_CHECKS])

    run()
    assert set(statuses) <= {200, 400, 404}
    assert statuses.total() >= 60
    assert statuses[200 if mode is GenerationMode.POSITIVE else 400] >= 10, statuses
    assert chatty.metric("bitskip_request_rejected_total", reason="internal_error") == 0
    assert "Traceback" not in chatty.log


def bound_work(case: Case) -> None:
    """Short answers; and the served model, or hardly any request would come to an answer."""
    if isinstance(case.body, dict):
        case.body.pop("model", None)
        case.body["max_tokens"] = 3
        case.body.pop("max_completion_tokens", None)
        if case.body.get("n") not in (None, 1):
            case.body["n"] = 2


def test_no_made_up_request_breaks_the_other_routes(chatty: ServedProcess) -> None:
    schema = schemathesis.openapi.from_url(f"{chatty.url}/openapi.json")
    paths = {route.path for route in ROUTES}
    found: list[Any] = [result.ok() for result in schema.get_all_operations()]  # pyright: ignore
    others = [operation for operation in found if operation.path not in paths]
    assert len(others) >= 6
    for operation in others:

        @settings(FUZZING, max_examples=15)
        @given(case=operation.as_strategy())
        def run(case: Case) -> None:
            case.validate_response(case.call(timeout=60), checks=[not_a_server_error])

        run()
    assert "Traceback" not in chatty.log

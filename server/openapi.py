"""The document of the HTTP interface, /openapi.json, and the page that shows it, /docs.

Routes read their bodies by hand, so what FastAPI knows of them is put in here, from the same
models that check the bodies.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse

from server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    RequestModel,
    TokenizeRequest,
)
from server.protocol.answers import ANSWER_MODELS

REQUEST_MODELS: tuple[type[RequestModel], ...] = (
    CompletionRequest,
    ChatCompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
"""Every body that a route reads by hand."""

ASSETS: Mapping[str, str] = MappingProxyType(
    {
        "swagger-ui-bundle.js": "text/javascript",
        "swagger-ui.css": "text/css",
        "favicon-32x32.png": "image/png",
    }
)
"""Swagger UI's files, served from here, and their types."""

_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "A request that can never be served as it stands; `param` names the field at fault.",
    401: "No valid API key, where the server asks for one.",
    404: "A model that is not served.",
    408: "The request waited too long for its turn.",
    413: "The body is too large.",
    429: "Too many requests are waiting; `Retry-After` says when to try again.",
    500: "The server's own fault; its log says more.",
    503: "The engine is loading, shutting down or dead.",
}

_ERROR_CONTENT = {"application/json": {"schema": {"$ref": _REF.format(model="ErrorAnswer")}}}

Json = dict[str, Any]

router = APIRouter(include_in_schema=False)


def json_body(model: type[RequestModel], examples: Mapping[str, Json]) -> Json:
    """A route's `openapi_extra`: a body that it reads by hand, one of `REQUEST_MODELS`."""
    content = {
        "schema": {"$ref": _REF.format(model=model.__name__)},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def stream_responses(answer: str, chunk: str) -> dict[int | str, Json]:
    """A route's `responses`: a whole answer or a stream of chunks, by their models' names."""
    values = [{"$ref": _REF.format(model=model)} for model in (chunk, "ErrorAnswer")]
    value = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": values},
    }
    event = {
        "type": "object",
        "description": f"One event, on one line: a {chunk}, or an error; the last is [DONE].",
        "properties": {"data": {"anyOf": [value, {"type": "string", "const": "[DONE]"}]}},
        "required": ["data"],
    }
    found: Json = {
        "description": "The whole answer, or with `stream: true` its chunks.",
        "content": {
            "application/json": {"schema": {"$ref": _REF.format(model=answer)}},
            "text/event-stream": {"schema": event},
        },
    }
    responses: dict[int | str, Json] = {200: found}
    for status, text in _ERRORS.items():
        responses[status] = {"description": text, "content": _ERROR_CONTENT}
    return responses


def build_openapi(app: FastAPI) -> Json:
    """The whole document."""
    with warnings.catch_warnings():
        # HEAD has the operation id of its GET, beside which it need not be told.
        warnings.filterwarnings("ignore", "Duplicate Operation ID")
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
    for path, operations in document["paths"].items():
        operations.pop("head", None)
        for method, operation in operations.items():
            operation["operationId"] = method + re.sub(r"\W+", "_", path)
            _put_errors_right(operation["responses"])
    # Where a field may be left out, a request may say null; an answer's fields are as they are.
    requests = _definitions(REQUEST_MODELS)
    for schema in requests.values():
        _allow_null(schema)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= _definitions(ANSWER_MODELS) | requests
    components["securitySchemes"] = {
        "api_key": {
            "type": "http",
            "scheme": "bearer",
            "description": "Where the server was started with --api-key.",
        }
    }
    document["security"] = [{}, {"api_key": []}]
    return document


def _put_errors_right(responses: Json) -> None:
    """No route answers 422, and every error has one shape."""
    responses.pop("422", None)
    if not any(status >= "4" for status in responses):
        responses["default"] = {"description": "An error.", "content": _ERROR_CONTENT}


def _definitions(models: tuple[type[Any], ...]) -> dict[str, Json]:
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    definitions: dict[str, Json] = schema["$defs"]
    for definition in definitions.values():
        for field in definition.get("properties", {}).values():
            field.pop("title", None)  # Nothing but the name again.
    return definitions


def _allow_null(schema: Json) -> None:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        options = field.get("anyOf")
        if name in required or {"type": "null"} in (options or ()):
            continue
        if options is not None:
            options.append({"type": "null"})
        elif "$ref" in field:
            field["anyOf"] = [{"$ref": field.pop("$ref")}, {"type": "null"}]
        else:
            field["type"] = [field["type"], "null"]
            if "enum" in field:
                field["enum"] = [*field["enum"], None]


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Swagger UI; every address in it is relative, so that it works behind a proxy's prefix."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="BitSkip Server",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon-32x32.png",
        # Else Swagger UI asks a validator on the internet about the document.
        swagger_ui_parameters={"validatorUrl": None},
    )


@router.get("/docs/{name}")
async def asset(name: str) -> FileResponse:
    """One of the page's files."""
    if name not in ASSETS:
        raise HTTPException(404)
    with resources.as_file(resources.files("fastapi_swagger") / "resources" / name) as path:
        return FileResponse(path, media_type=ASSETS[name])

"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from server.context import ServerContext, get_context
from server.wire import JSONBody

router = APIRouter(tags=["models"])


def model_object(context: ServerContext, name: str) -> dict[str, Any]:
    """OpenAI's model object, with what early exits need to be known."""
    model = context.engine.model_config
    return {
        "id": name,
        "object": "model",
        "created": context.started_at,
        "owned_by": "bitskip",
        "root": context.model_names[0],
        "parent": None,
        "max_model_len": context.engine.config.max_model_len,
        "num_layers": model.num_layers,
        "exit_layers": list(model.suggested_exits),
    }


@router.get("/v1/models", response_model=None)
async def list_models(http: Request) -> JSONBody:
    """Every served name."""
    context = get_context(http)
    models = [model_object(context, name) for name in context.model_names]
    return JSONBody({"object": "list", "data": models})


# Names may hold slashes, as those of a model hub do.
@router.get("/v1/models/{name:path}", response_model=None)
async def retrieve_model(http: Request, name: str) -> JSONBody:
    """One served name; 404 for any other."""
    context = get_context(http)
    return JSONBody(model_object(context, context.served_name(name)))

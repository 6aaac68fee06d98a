"""POST /v1/models/{id}/load and /unload: models brought to memory and out of it by hand."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response

from .catalog import model_item
from .engine import engine_of, find_model
from .requests import LoadRequest, UnloadRequest
from .responses import ModelItem
from .sse import unless_disconnected

__all__ = ["router"]

router = APIRouter(tags=["models"])
_ACCEPTED: dict[int | str, dict[str, object]] = {
    202: {"model": ModelItem, "description": "Under way; GET /v1/models/{id} says when it is done."}
}


@router.post("/v1/models/{model:path}/load", response_model=ModelItem, responses=_ACCEPTED)
async def load_model(model: str, request: Request, body: LoadRequest | None = None) -> Response:
    """Makes a model hot, in its turn among the requests; no busy model is evicted for it."""
    wanted = body or LoadRequest()
    engine, name = engine_of(request), find_model(engine_of(request), model).name
    await unless_disconnected(request.receive, engine.load_model_async(name, wait=wanted.wait))
    return _state(request, name, is_done=wanted.wait)


@router.post("/v1/models/{model:path}/unload", response_model=ModelItem, responses=_ACCEPTED)
async def unload_model(model: str, request: Request, body: UnloadRequest | None = None) -> Response:
    """Drops a model from memory, once what was asked of it before has been answered.

    A later request brings it back. With `"tier": "ddr"` its weights stay there.
    """
    wanted = body or UnloadRequest()
    tier: Literal["ddr", "disk"] = wanted.tier
    engine, name = engine_of(request), find_model(engine_of(request), model).name
    await unless_disconnected(request.receive, engine.unload_model_async(name, tier, wait=wanted.wait))
    return _state(request, name, is_done=wanted.wait)


def _state(request: Request, name: str, *, is_done: bool) -> Response:
    """Returns where a model is now."""
    item = model_item(find_model(engine_of(request), name), request.app.state.created)
    return Response(item.model_dump_json(), 200 if is_done else 202, media_type="application/json")

"""GET /v1/models, and the endpoints that machines watch: /health, /ready, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ..request import LastMove, ModelStatus, RouteStatus
from .engine import engine_of, find_model, find_route
from .errors import ErrorBody, ErrorObject, error_response
from .responses import ListedItem, ModelBytes, ModelItem, ModelList, ModelMove, RouteItem

__all__ = ["model_item", "router"]

router = APIRouter()


@router.get("/v1/models", tags=["models"])
async def list_models(request: Request) -> ModelList:
    """Lists the models of the bundle, where each is now and what it takes; then the routes to several of them."""
    created, engine = request.app.state.created, engine_of(request)
    models = [model_item(status, created) for status in engine.models()]
    return ModelList(data=[*models, *(_route_item(status, created) for status in engine.routes())])


@router.get("/v1/models/{model:path}", tags=["models"])
async def retrieve_model(model: str, request: Request) -> ModelItem | RouteItem:
    """Returns one model, by name or alias, or a route."""
    route = find_route(engine_of(request), model)
    if route is not None:
        return _route_item(route, request.app.state.created)
    return model_item(find_model(engine_of(request), model), request.app.state.created)


@router.get("/health", tags=["operation"])
async def health() -> dict[str, str]:
    """Says that the process answers."""
    return {"status": "ok"}


@router.get("/ready", tags=["operation"])
async def ready(request: Request) -> Response:
    """Says whether requests are taken: 503 while starting and while draining."""
    if engine_of(request).is_ready():
        return Response('{"status":"ready"}', media_type="application/json")
    message = "the runtime takes no requests now: it is starting or draining; try again"
    body = ErrorBody(error=ErrorObject(message=message, type="server_error", code="not_ready"))
    return error_response(503, body, {"retry-after": "1"})


@router.get("/metrics", tags=["operation"])
async def metrics(request: Request) -> Response:
    """Returns the runtime's counters in Prometheus' text format."""
    text, content_type = engine_of(request).metrics.render()
    # As a header, for `media_type` would add a second charset to it.
    return Response(text, headers={"content-type": content_type})


def model_item(status: ModelStatus, created: int) -> ModelItem:
    """Returns a model as clients see it."""
    return ModelItem(
        **_listed(status, created).model_dump(),
        bytes=ModelBytes(weights=status.weights_bytes, kv=status.kv_bytes, workspace=status.workspace_bytes),
        health=status.health,
        tiers=dict(status.tier_bytes),
        running=status.num_running,
        waiting=status.num_waiting,
        last_move=None if status.last_move is None else _move(status.last_move),
        aliases=list(status.aliases),
        pin=status.pin,
    )


def _move(move: LastMove) -> ModelMove:
    return ModelMove(
        source=move.source,
        destination=move.destination,
        bytes=move.num_bytes,
        seconds=move.seconds,
        ended_at=move.ended_at,
    )


def _route_item(status: RouteStatus, created: int) -> RouteItem:
    return RouteItem(**_listed(status, created).model_dump(), models=list(status.models), policy=status.policy)


def _listed(status: ModelStatus | RouteStatus, created: int) -> ListedItem:
    """Returns what the items of models and of routes have in common."""
    return ListedItem(
        id=status.name,
        created=created,
        context_length=status.context_length,
        max_completion_tokens=status.max_completion_tokens,
        capabilities=list(status.capabilities),
        residency=status.residency,
    )

"""The ASGI app: endpoints, one shape for errors, and what stands around every request."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from fastapi import FastAPI

from . import catalog, chat, classification, completions, embeddings, management
from .engine import Engine
from .errors import ErrorBody, install_error_handlers
from .middleware import ApiKeys, BodyLimit, RequestId
from .responses import now

__all__ = ["DEFAULT_MAX_BODY_BYTES", "create_app"]

DEFAULT_MAX_BODY_BYTES = 8 * 2**20


def create_app(
    runtime: Engine, *, api_keys: Sequence[str] = (), max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
) -> FastAPI:
    """Returns an app that answers for a runtime, to be run by any ASGI server.

    Args:
        runtime: Stays the caller's: the app neither starts nor closes it.
        api_keys: Keys of which a client needs one; empty: anybody may ask. /health, /ready and /metrics need none.
        max_body_bytes: Larger request bodies are refused with 413.
    """
    app = FastAPI(
        title="plait",
        version=version("plait"),
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.engine = runtime
    app.state.created = now()
    for part in (chat, completions, embeddings, classification, management, catalog):
        app.include_router(part.router)
    install_error_handlers(app)
    # The last added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(ApiKeys, keys=api_keys)
    app.add_middleware(RequestId)
    return app

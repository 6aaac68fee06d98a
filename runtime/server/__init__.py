"""The OpenAI-compatible HTTP server: `create_app` for one's own ASGI server, `serve` to just run it."""

from __future__ import annotations

from .app import DEFAULT_MAX_BODY_BYTES, create_app
from .engine import Engine
from .serve import serve

__all__ = ["DEFAULT_MAX_BODY_BYTES", "Engine", "create_app", "serve"]

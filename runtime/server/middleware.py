"""Around every request: an id, keys, a bound on its body, and no exception that gets past.

Plain ASGI, outermost first as `app.py` stacks them. (Starlette's BaseHTTPMiddleware stands between an endpoint and the
news that its client has gone, which is why it is not used.)
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import uuid
from collections.abc import Sequence

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import INTERNAL_ERROR, CutOffError, ErrorBody, ErrorObject, error_response, public_error

__all__ = ["ApiKeys", "BodyLimit", "RequestId"]

_LOG = logging.getLogger("plait.server")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})


class RequestId:
    """Gives each request an id, says it in the response, and logs with it what went wrong inside.

    The id that a client sent is kept if it is one that can do no harm in a log. It is in `request.state.request_id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        is_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            _LOG.info("request %s: the client went away; its work is stopped", request_id)
        except asyncio.CancelledError:
            # Ends here, for we are the outermost: a server cancels what still runs when its time to drain is over.
            _LOG.warning("request %s was cut off: the server is stopping", request_id)
            if not is_started:
                await error_response(503, public_error(CutOffError()))(scope, receive, send_with_id)
        except Exception:
            _LOG.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if is_started:
                raise  # half a response is out: the connection must break, or it would look complete
            await error_response(500, INTERNAL_ERROR)(scope, receive, send_with_id)


def _request_id(headers: Headers) -> str:
    sent = headers.get("x-request-id", "")
    return sent if _SANE_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"


class ApiKeys:
    """Lets only requests with one of the keys pass; with no keys, all. Probes and metrics are always open.

    Which key it was is in `request.state.key_id`.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] != "http" or not self._keys or scope["path"] in _OPEN_PATHS
        number = None if is_open else self._number(scope)
        if number is not None:
            scope.setdefault("state", {})["key_id"] = str(number)
        if is_open or number is not None:
            await self._app(scope, receive, send)
            return
        body = ErrorBody(
            error=ErrorObject(
                message="missing or wrong API key; send it as 'Authorization: Bearer KEY'",
                type="invalid_request_error",
                code="invalid_api_key",
            )
        )
        await error_response(401, body, {"www-authenticate": "Bearer"})(scope, receive, send)

    def _number(self, scope: Scope) -> int | None:
        """Returns which of the keys a request has."""
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        sent = key.strip().encode("latin-1")
        # All keys are compared, each in constant time, so that timing tells nothing.
        matches = [secrets.compare_digest(sent, known) for known in self._keys]
        return matches.index(True) if scheme.lower() == "bearer" and any(matches) else None


class BodyLimit:
    """Refuses bodies beyond a size with 413, by their declared length or once they pass it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        received_bytes = 0 if not declared.isdecimal() else int(declared)
        is_too_large = received_bytes > self._max_bytes
        received_bytes = 0

        async def limited_receive() -> Message:
            nonlocal received_bytes
            if is_too_large:
                raise self._refusal()
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, limited_receive, send)

    def _refusal(self) -> HTTPException:
        # An HTTPException, for that is what FastAPI lets through while it reads a body.
        return HTTPException(413, f"the body is larger than {self._max_bytes} bytes; send less at once")

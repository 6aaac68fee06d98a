"""Responses that stop when their client goes, streamed or not.

`unless_disconnected` runs work only for as long as its client listens. `EventStream` sends server-sent events the same
way; an error before the first event is still an ordinary HTTP error, with its status.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import TypeVar

from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ...errors import RequestError
from .errors import INTERNAL_ERROR, CutOffError, public_error

__all__ = ["DONE", "EventStream", "event", "unless_disconnected"]

_LOG = logging.getLogger("plait.server")
_T = TypeVar("_T")

DONE = b"data: [DONE]\n\n"


def event(data: str, name: str | None = None) -> bytes:
    """Returns one event whose data is one line of JSON."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode()


async def unless_disconnected(receive: Receive, work: Coroutine[None, None, _T]) -> _T:
    """Returns the result of work, which is cancelled and has ended if this raises.

    Raises:
        ClientDisconnect: if the client went away first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends events as they are made; closes their generator when the last is out or the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        """Takes ownership of a generator of formatted events."""
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await unless_disconnected(receive, self._send(scope, send))
        except asyncio.CancelledError:
            if self._has_started:
                await self._fail(CutOffError(), scope, send)
            raise

    async def _send(self, scope: Scope, send: Send) -> None:
        first = await anext(self._events)
        self._has_started = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        try:
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            await self._fail(error, scope, send)
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fail(self, error: Exception, scope: Scope, send: Send) -> None:
        # The status is out: what remains is to say it in an event, and to end without [DONE].
        data = _error_event(error, scope["state"]["request_id"])
        await send({"type": "http.response.body", "body": data, "more_body": False})


def _error_event(error: Exception, request_id: str) -> bytes:
    if isinstance(error, RequestError):
        return event(json.dumps(public_error(error).model_dump()), "error")
    _LOG.error("request %s failed while it was streamed", request_id, exc_info=error)
    return event(INTERNAL_ERROR.model_dump_json(), "error")

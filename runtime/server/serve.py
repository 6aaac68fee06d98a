"""Runs the app under uvicorn until a signal asks it to stop: no new connections, running answers end, then return."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from ...errors import ConfigurationError
from .app import DEFAULT_MAX_BODY_BYTES, create_app
from .engine import Engine

__all__ = ["listen", "make_server", "serve", "serving"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    runtime: Engine,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    api_keys: Sequence[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    drain_seconds: int = 60,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serves a runtime from the calling thread; returns after SIGINT or SIGTERM, once running answers have ended.

    Args:
        runtime: Stays the caller's, who closes it afterwards.
        host: Address to listen on; loopback unless asked otherwise.
        port: 0 takes a free one.
        api_keys: Keys of which a client needs one; empty: anybody may ask.
        max_body_bytes: Larger request bodies are refused.
        drain_seconds: Answers that still run this long after the signal are cut off. A second SIGINT does so at once.
        announce: Called with the server's URL as soon as clients can connect.

    Raises:
        ConfigurationError: if the address cannot be listened on.
    """
    with listen(host, port) as listener:
        app = create_app(runtime, api_keys=api_keys, max_body_bytes=max_body_bytes)
        server = make_server(app, drain_seconds=drain_seconds)
        if announce is not None:
            announce(_url(listener))
        with _stopped_by_signals(server):
            server.run(sockets=[listener])


@contextmanager
def serving(runtime: Engine, *, api_keys: Sequence[str] = (), drain_seconds: int = 5) -> Iterator[str]:
    """Serves a runtime on a free loopback port from a thread of this process, for as long as the context lasts.

    Yields:
        The server's URL.
    """
    with listen("127.0.0.1", 0) as listener:
        server = make_server(create_app(runtime, api_keys=api_keys), drain_seconds=drain_seconds)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="plait-http", daemon=True)
        thread.start()
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket: clients can connect from now on, and wait to be served.

    Raises:
        ConfigurationError: if the address is taken, or none of this machine's.
    """
    if not 0 <= port < 2**16:  # getaddrinfo would take it modulo 2**16
        raise ConfigurationError(f"cannot listen on {host}:{port}: ports end at 65535; choose another host or port")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)  # type: ignore[arg-type]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {reason}; choose another host or port (port 0 takes a free one)"
        ) from None


def make_server(app: Callable[..., object], *, drain_seconds: int) -> uvicorn.Server:
    """Returns a server that leaves logging alone; `should_exit = True` stops it from any thread."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=drain_seconds,
    )
    return uvicorn.Server(config)


@contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Lets signals end the server but not the process.

    uvicorn handles them while it runs, and afterwards raises them again for whoever handled them before: for the
    default handlers that would be a traceback, or death by signal instead of exit code 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

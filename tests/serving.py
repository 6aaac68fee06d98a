"""A real server on a runtime, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from plait.runtime.engine import Runtime
from plait.runtime.server import create_app
from plait.runtime.server.serve import listen, make_server


@contextmanager
def serving(runtime: Runtime) -> Iterator[str]:
    """Serves a runtime on a free loopback port from a thread; yields the URL."""
    with listen("127.0.0.1", 0) as listener:
        server = make_server(create_app(runtime), drain_seconds=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

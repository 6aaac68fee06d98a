from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from plait.errors import ExecutionError
from plait.runtime.bench.switching.rival import Rival

SERVER = """
import http.server, os, signal
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        print("loading the model", flush=True)
        {end}
http.server.HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""


@pytest.mark.parametrize(
    ("end", "says"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", "Segmentation fault"), ("os._exit(3)", "code 3")],
    ids=["signal", "code"],
)
def test_a_rival_that_dies_at_a_request_is_told_with_how_it_ended(end: str, says: str) -> None:
    def command(port: int, number: int) -> Sequence[str]:
        del number
        return [sys.executable, "-c", SERVER.format(port=port, end=end)]

    with pytest.raises(ExecutionError) as caught:
        Rival("theirs", command, lambda number: "model").answer(0, "Hello", 1)
    assert "theirs did not answer: " in str(caught.value)
    assert f"(its process ended with {says}); its log ends: loading the model" in str(caught.value)


def test_a_rival_that_does_not_start_is_told_with_its_code() -> None:
    with pytest.raises(
        ExecutionError, match=r"^a server has ended \(its process ended with code 5\); its log ends: no"
    ):
        Rival("theirs", lambda port, number: [sys.executable, "-c", "print('no'); exit(5)"], str).answer(0, "", 1)

"""`plait top` against a real server."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams
from plait.runtime.server.serve import listen, serving

COMMAND = str(Path(sys.executable).with_name("plait"))


@pytest.fixture(scope="module")
def url(tiny_bundle: Path) -> Iterator[str]:
    with Runtime(tiny_bundle) as runtime:
        runtime.complete("chat", "the", SamplingParams(max_tokens=5, temperature=0))
        with serving(runtime) as url:
            yield url


def test_one_reading_as_json(plait, url: str) -> None:
    data = plait("top", f"{url}/v1", "--json", "--interval", "0.1").data
    chat = next(model for model in data["models"] if model["name"] == "chat")
    assert (chat["residency"], chat["generated_tokens"], chat["tokens_per_s"]) == ("hot", 5, 0.0)
    assert [tier["tier"] for tier in data["tiers"]] == ["hbm", "ddr"]
    assert 0 < data["tiers"][0]["used_bytes"] <= data["tiers"][0]["budget_bytes"]
    assert data["switches"][0]["model"] == "chat"
    assert (data["switches"][0]["destination"], data["num_switches"]) == ("hbm", 1)


def test_one_frame(plait, url: str) -> None:
    outcome = plait("top", url, "--once", "--interval", "0.1")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{url}  " in outcome.out
    assert "0 running, 0 waiting, 1 switches" in outcome.out
    for text in ("chat", "other", "embed", "hot", "warm", "hbm", "ddr", "ddr -> hbm", "disk -> ddr"):
        assert text in outcome.out


def test_it_is_live_on_a_terminal_until_ctrl_c(url: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([COMMAND, "top", url, "--interval", "0.1"], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, deadline = "", time.monotonic() + 30
    try:
        while seen.count("running,") < 2 and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.5)[0]:
                seen += os.read(ours, 65536).decode(errors="replace")
        os.write(ours, b"\x03")  # only a terminal of its own session turns this into a signal
        process.send_signal(2)
        assert process.wait(timeout=20) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert seen.count("running,") >= 2
    assert "Traceback" not in seen


def test_nobody_there_or_no_url_is_one_line(plait) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    assert f"nobody answers at http://127.0.0.1:{port}" in plait("top", f"http://127.0.0.1:{port}").complaint()
    assert "is no URL of a server" in plait("top", "ftp://x").complaint()


def test_a_server_of_something_else_is_one_line(plait) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>a page</html>")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = plait("top", f"http://127.0.0.1:{server.server_port}").complaint()
        server.shutdown()
    assert "is no server of plait's" in said


def test_a_server_that_wants_a_key_is_one_line(plait, tiny_bundle: Path, monkeypatch) -> None:
    with Runtime(tiny_bundle) as runtime, serving(runtime, api_keys=["sesame"]) as url:
        assert "answers 401; give its --api-key" in plait("top", url).complaint()
        monkeypatch.setenv("PLAIT_API_KEY", "sesame open")
        assert plait("top", url, "--json", "--interval", "0.1").code == 0

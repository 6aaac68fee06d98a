from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

COMMAND = str(Path(sys.executable).with_name("plait"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_it_says_where_it_is_serves_and_ends_with_a_signal(tiny_bundle: Path, number: signal.Signals) -> None:
    command = [COMMAND, "serve", tiny_bundle, "--port", "0", "--api-key", "sesame", "--hbm", "2MiB", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["models"] == ["chat", "other", "embed"]
        assert httpx.get(f"{ready['url']}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        body = {"model": "assistant", "prompt": "the", "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{ready['url']}/v1/completions", json=body, headers=headers, timeout=30)
        assert answer.json()["usage"]["completion_tokens"] == 4
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output) == (0, "")
    assert "Traceback" not in errors


@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.5])  # imports first, then programs
def test_sigterm_while_it_loads_is_one_line(tiny_bundle: Path, seconds: float) -> None:
    process = subprocess.Popen(
        [COMMAND, "serve", tiny_bundle, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    # On a slow machine Python itself may not be up yet, on a fast one it is serving already and ends as a server does.
    assert (process.returncode, errors) in ((143, "plait: ended by SIGTERM\n"), (-signal.SIGTERM, ""), (0, ""))


def test_a_taken_port_is_one_line_before_anything_is_loaded(plait, tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        says = plait("serve", tiny_bundle, "--port", port).complaint()
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in says


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "tpu"], "unknown target 'tpu'"),
        (["--digest", "0" * 64], "does not have the demanded digest"),
        (["--api-key", " "], "an --api-key is empty"),
        (["--port", "70000"], "Invalid value for '--port'"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["--max-requests", "0"], "Invalid value for '--max-requests'"),
    ],
    ids=["target", "digest", "key", "port", "host", "requests"],
)
def test_what_cannot_be_served_is_one_line(plait, tiny_bundle: Path, options: list[str], says: str) -> None:
    assert says in plait("serve", tiny_bundle, *options).complaint()


def test_a_missing_bundle_is_one_line(plait, tmp_path: Path) -> None:
    assert "is not a plait bundle" in plait("serve", tmp_path).complaint()

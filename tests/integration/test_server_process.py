"""`serve` as a process: it ends what it has begun, exits with 0, and leaves nothing behind."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from plait.errors import ConfigurationError
from plait.runtime.server import serve

HERE = Path(__file__).parent
SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import EchoEngine
from plait.runtime.server import serve
serve(EchoEngine(), port=0, drain_seconds=int(sys.argv[2]), announce=lambda url: print(url, flush=True))
print("returned", flush=True)
"""


def start(drain_seconds: int) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", SERVE, str(HERE), str(drain_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture
def process_and_url() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process, url = start(drain_seconds=20)
    yield process, url
    process.kill()
    process.communicate()


def stop_once_it_answers(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 10
    while 'vllm:num_requests_running{model_name="chat"} 1.0' not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)


def is_open(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((httpx.URL(url).host, httpx.URL(url).port or 0)) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_lets_running_streams_end(process_and_url, number) -> None:
    process, url = process_and_url
    text = "x" * 300
    body = {"model": "chat", "messages": [{"role": "user", "content": text}], "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(number)
        rest = list(lines)
    assert sum('"content":"x"' in line for line in rest) == len(text)
    assert "data: [DONE]" in rest
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "returned\n", "")
    assert not is_open(url)


def test_an_idle_server_stops_at_once(process_and_url) -> None:
    process, url = process_and_url
    with httpx.Client(base_url=url) as client:  # its kept-alive connection must not hold the server up
        assert client.get("/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
def test_an_answer_without_end_is_cut_off_after_the_time_to_drain(stream) -> None:
    process, url = start(drain_seconds=1)
    threading.Thread(target=stop_once_it_answers, args=(process, url)).start()
    body = {"model": "chat", "messages": [{"role": "user", "content": "forever"}], "stream": stream}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)
    assert response.status_code == (200 if stream else 503)
    error = json.loads(response.text.partition("event: error\ndata: ")[2] if stream else response.text)["error"]
    assert error["code"] == "shutting_down"
    assert "[DONE]" not in response.text
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert "was cut off: the server is stopping" in errors


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            serve(None, port=port)  # type: ignore[arg-type]


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no.such.host.invalid", 0)], ids=["port", "host"])
def test_an_impossible_address_is_one_clear_line(host, port) -> None:
    with pytest.raises(ConfigurationError, match="choose another host or port"):
        serve(None, host, port)  # type: ignore[arg-type]

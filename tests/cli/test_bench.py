from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
COMMAND = str(Path(sys.executable).with_name("plait"))


class Handler(BaseHTTPRequestHandler):
    """Three chunks and the usage for "hot"; no end for "endless"; refusal for all else."""

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "hot"}, {"id": "other"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body["model"] == "endless":
            self.server.is_asked.set()  # type: ignore[attr-defined]
            self.server.may_end.wait(20)  # type: ignore[attr-defined]
        if body["model"] not in ("hot", "other"):
            self._send(404, b'{"error": {"code": "model_not_found"}}')
            return
        text = {"choices": [{"delta": {"content": "x"}, "text": "x"}]}
        end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}
        chunks = (text, text, text, end, usage)
        self._send(200, "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _send(self, status: int, data: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.is_asked, server.may_end = threading.Event(), threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.may_end.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


@pytest.fixture
def url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    "arguments", [[], ["serve"], ["engine"], ["switch"]], ids=["bench", "serve", "engine", "switch"]
)
def test_help_is_the_golden_text(plait, arguments: list[str], monkeypatch, request) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = plait("bench", *arguments, "--help")
    golden = GOLDEN / f"help_{'_'.join(['bench', *arguments])}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(outcome.out)
    assert (outcome.code, outcome.out) == (0, golden.read_text())


def test_a_server_is_measured_in_a_closed_loop(plait, url: str) -> None:
    data = plait("bench", "serve", f"{url}/v1/", "--requests", 12, "--concurrency", 3, "--slo", "e2e=30", "--json").data
    assert (data["requests"], data["answered"], data["failures"], data["was_interrupted"]) == (12, 12, {}, False)
    assert (data["input_tokens"], data["output_tokens"], data["tokens_counted_by"]) == (60, 36, ["usage"])
    assert (data["slo"]["attainment"], data["url"]) == (1.0, url)
    assert data["ttft_seconds"]["p50"] > 0


def test_models_are_asked_in_turn_and_printed_for_people(plait, url: str) -> None:
    models = ("--model", "hot", "--model", "nobody")
    outcome = plait("bench", "serve", url, *models, "--rate", 500, "--requests", 10, "--endpoint", "completions")
    assert (outcome.code, outcome.err) == (0, "")
    assert "10: 5 answered, 5 failed" in outcome.out
    assert "5 HTTP 404 model_not_found" in outcome.out
    assert "latencies of whole answers" in outcome.out
    assert "nobody         5       5" in outcome.out


def test_a_trace_is_sent_once(plait, url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp,model\n" + "".join(f"{100 + number},M{number % 3}\n" for number in range(7)))
    models = ("--model", "hot", "--model", "other")
    data = plait("bench", "serve", url, "--trace", trace, "--speed", 100, *models, "--json").data
    assert {name: each["answered"] for name, each in data["models"].items()} == {"hot": 5, "other": 2}
    assert data["seconds"] >= 0.06


def test_no_answer_at_all_is_exit_code_1(plait) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    outcome = plait("bench", "serve", f"http://127.0.0.1:{port}", "--model", "a", "--requests", 3, "--json")
    assert (outcome.code, outcome.err) == (1, "plait: no request was answered\n")
    assert (outcome.data["failures"], outcome.data["ttft_seconds"]) == ({"cannot connect": 3}, None)
    says = plait("bench", "serve", f"http://127.0.0.1:{port}").complaint()
    assert f"cannot reach http://127.0.0.1:{port}" in says


def test_ctrl_c_prints_what_there_is(server: ThreadingHTTPServer, url: str) -> None:
    options = ["--model", "hot", "--model", "endless", "--warm-up", "0", "--json"]
    process = subprocess.Popen(
        [COMMAND, "bench", "serve", url, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.is_asked.wait(30)  # type: ignore[attr-defined]
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    data = json.loads(output)
    assert (data["was_interrupted"], data["answered"], data["interrupted"]) == (True, 1, 1)


def test_a_bundle_is_served_for_the_time_of_the_run(plait, tiny_bundle: Path) -> None:
    sizes = ("--input-tokens", 2, "--output-tokens", 4, "--requests", 4)
    models = ("--model", "chat", "--model", "other", "--temperature", 0)  # greedy answers have their full length
    data = plait("bench", "serve", tiny_bundle, *sizes, *models, "--concurrency", 2, "--hbm", "2MiB", "--json").data
    assert (data["answered"], data["output_tokens"], sorted(data["models"])) == (4, 16, ["chat", "other"])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(data["url"].rpartition(":")[2]))) != 0


def test_the_engine_is_measured(plait, tiny_bundle: Path) -> None:
    data = plait("bench", "engine", tiny_bundle, "--runs", 1, "--json").data
    assert (data["model"], [rate["size"] for rate in data["decode"]]) == ("chat", [1, 4])
    assert all(rate["tokens_per_s"] > 0 < rate["roofline_share"] for rate in data["decode"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rate", "1", "--concurrency", "2"], "--concurrency, --rate and --trace exclude each other"),
        (["--rate", "0"], "--rate is 0: it must be above 0"),
        (["--duration", "nan"], "--duration is nan"),
        (["--scale", "-1"], "--scale is -1"),
        (["--concurrency", "0"], "Invalid value for '--concurrency'"),
        (["--slo", "itl=1"], "--slo 'itl=1': write one of ttft, tpot, e2e"),
        (["--trace", "none.csv"], "cannot read trace none.csv"),
        (["--endpoint", "images"], "'images' is not one of 'chat', 'completions'"),
        (["--hbm", "2MiB"], "--hbm is for a bundle that is served here"),
    ],
    ids=["exclusive", "rate", "duration", "scale", "clients", "slo", "trace", "endpoint", "hbm"],
)
def test_wrong_options_are_one_line(plait, arguments: list[str], says: str) -> None:
    assert says in plait("bench", "serve", "http://127.0.0.1:9", *arguments).complaint()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--link", "0"], "--link is 0: it must be above 0"),
        (["--link", "nan"], "--link is nan"),
        (["--variants", "5"], "--variants is 5: chat models and guards are pairs, so it must be even"),
        (["--variants", "2"], "Invalid value for '--variants'"),
        (["--turns", "0"], "Invalid value for '--turns'"),
        (["--perfetto", "none/such/file.json"], "cannot write none/such/file.json: there is no directory none/such"),
    ],
    ids=["link", "not a number", "odd", "few", "turns", "perfetto"],
)
def test_wrong_options_of_switch_are_one_line(plait, arguments: list[str], says: str) -> None:
    assert says in plait("bench", "switch", *arguments).complaint()


def test_a_bundle_without_an_agents_models_is_one_line(plait, tiny_bundle: Path) -> None:
    says = plait("bench", "switch", tiny_bundle).complaint()
    assert "bundle 'tiny' has too little for the agent: four chat models or more are needed" in says


@pytest.mark.parametrize("server", ["http://", "http://[::1", "https://:80/v1", "http://a:port"])
def test_what_is_no_url_is_one_line(plait, server: str) -> None:
    assert "is no URL of a server" in plait("bench", "serve", server).complaint()


@pytest.mark.parametrize("command", ["serve", "engine", "switch"])
def test_what_is_no_bundle_is_one_line(plait, tmp_path: Path, command: str) -> None:
    says = plait("bench", command, tmp_path).complaint()
    assert "is not a plait bundle" in says
    assert says.count("plait: ") == 1


def test_a_model_that_generates_nothing_is_one_line(plait, tiny_bundle: Path) -> None:
    assert (
        "model 'embed' is none that generates" in plait("bench", "engine", tiny_bundle, "--model", "embed").complaint()
    )

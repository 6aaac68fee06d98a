"""The load generator against real servers: one that answers, and several that do not."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from plait.runtime.bench.arrivals import Arrival, Mix, poisson
from plait.runtime.bench.client import Endpoint, Kind, Reply, ask
from plait.runtime.bench.load import Load, run_load
from plait.runtime.bench.summary import summarize

CHAT = Endpoint("chat", timeout_seconds=20)


def asked(url: str, prompt: str, endpoint: Endpoint = CHAT, *, model: str = "chat", max_tokens: int = 50) -> Reply:
    async def main() -> Reply:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            return await ask(http, endpoint, model, prompt, max_tokens)

    return asyncio.run(main())


@contextmanager
def canned(response: bytes) -> Iterator[str]:
    """A server that says the same to everybody, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as request:
                # Whatever is left unread would turn the end of the answer into a reset.
                heads = dict(line.lower().split(b": ") for line in iter(request.readline, b"\r\n") if b": " in line)
                request.read(int(heads[b"content-length"]))
                connection.sendall(response)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


def stream(*data: object, head: str = "HTTP/1.1 200 OK") -> bytes:
    events = "".join(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n" for item in data)
    return f"{head}\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{events}".encode()


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_an_answer_is_timed_and_counted(server_url: str, kind: Kind) -> None:
    reply = asked(server_url, "hello, my dear", Endpoint(kind), max_tokens=8)
    assert reply.failure is None
    assert (reply.input_tokens, reply.output_tokens, reply.counted_by) == (14, 8, "usage")
    assert reply.ttft_seconds is not None
    assert len(reply.gaps_seconds) == 7
    assert 0 < reply.ttft_seconds < reply.ttft_seconds + sum(reply.gaps_seconds) <= reply.end_seconds


def test_without_usage_chunks_are_counted(server_url: str) -> None:
    reply = asked(server_url, "hello", Endpoint("chat", asks_usage=False))
    assert (reply.output_tokens, reply.counted_by, reply.input_tokens) == (5, "chunks", None)


@pytest.mark.parametrize(
    ("prompt", "options", "kind"),
    [
        ("hi", {"model": "nobody"}, "HTTP 404 model_not_found"),
        ("full", {}, "HTTP 429 queue_full"),
        ("x" * 500, {}, "HTTP 400 context_length_exceeded"),
        ("broken", {}, "HTTP 500 internal_server_error"),
        ("breaks", {}, "error in the stream: internal_server_error"),
        ("forever", {"endpoint": Endpoint("chat", timeout_seconds=0.2)}, "timeout"),
        ("silent forever", {"endpoint": Endpoint("chat", timeout_seconds=0.2)}, "timeout"),
        ("hi", {"endpoint": Endpoint("chat", temperature=9.0)}, "HTTP 400 decimal_above_max_value"),
    ],
    ids=["model", "full", "too-long", "broken", "breaks", "endless", "silent", "parameter"],
)
def test_failures_are_kinds_and_nothing_is_raised(server_url: str, prompt: str, options: dict, kind: str) -> None:
    reply = asked(server_url, prompt, **options)
    assert reply.failure == kind
    assert reply.output_tokens == 0


def test_a_server_that_is_gone_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert asked(f"http://127.0.0.1:{port}", "hi").failure == "cannot connect"


TEXT = {"choices": [{"delta": {"content": "x"}}]}
FINISH = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (b"", "connection lost"),
        (stream(TEXT, TEXT), "answer cut off"),
        (stream(), "no answer in the stream"),
        (stream("[DONE]"), "no answer in the stream"),
        (stream("{"), "malformed stream"),
        (stream([1]), "malformed stream"),
        (stream({"choices": 5}), "malformed stream"),
        (stream({"error": "out of memory"}), "error in the stream: out of memory"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ndata: ", "connection lost"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops", "HTTP 502"),
        (b"no HTTP at all\r\n\r\n", "connection lost"),
    ],
    ids=["nothing", "cut", "empty", "done", "broken", "list", "choices", "error", "half", "gateway", "no-http"],
)
def test_what_is_no_answer_is_counted(response: bytes, kind: str) -> None:
    with canned(response) as url:
        assert asked(url, "hi").failure == kind


def test_other_servers_streams_are_read() -> None:
    reasoning = {"choices": [{"delta": {"reasoning_content": "hm"}}]}
    first = {"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}}
    with canned(stream(first, reasoning, TEXT, FINISH, usage, "[DONE]")) as url:
        reply = asked(url, "hi")
    assert (reply.failure, reply.output_tokens, len(reply.gaps_seconds)) == (None, 7, 1)
    assert reply.computing_seconds is None
    with canned(stream(FINISH)) as url:  # an answer of an end and nothing else
        reply = asked(url, "hi")
    assert (reply.failure, reply.output_tokens) == (None, 0)
    assert reply.ttft_seconds is not None


def test_a_text_may_hold_any_line_end() -> None:
    chunk = {"choices": [{"delta": {"content": "one\u2028two\u0085three\u2029four"}}]}
    with canned(stream(json.dumps(chunk, ensure_ascii=False), "[DONE]")) as url:
        reply = asked(url, "hello")
    assert (reply.failure, reply.output_tokens) == (None, 1)


def test_a_server_says_how_long_it_computed() -> None:
    usage = {"choices": [], "usage": {"time_to_first_token": 0.75, "queue_ms": 250.0}}
    with canned(stream(TEXT, FINISH, usage, "[DONE]")) as url:
        assert asked(url, "hi").computing_seconds == 0.5


def test_a_run_counts_what_failed_and_goes_on(server_url: str) -> None:
    prompts = {"chat": "hello", "full": "full", "nobody": "hi"}

    async def main():
        async with httpx.AsyncClient(base_url=server_url, trust_env=False) as http:

            async def send(arrival: Arrival) -> Reply:
                model = "nobody" if arrival.model == "nobody" else "chat"
                return await ask(http, CHAT, model, prompts[arrival.model], arrival.output_tokens)

            mix = Mix(tuple(prompts), 1, 4)
            return await run_load(Load(poisson(mix, 200.0, seed=1), num_requests=30), send)

    found = summarize(asyncio.run(main()))
    assert (found.num_requests, found.num_answered, found.output_tokens) == (30, 10, 40)
    assert found.failures == {"HTTP 429 queue_full": 10, "HTTP 404 model_not_found": 10}
    assert {name: each.num_answered for name, each in found.by_model.items()} == {"chat": 10, "full": 0, "nobody": 0}

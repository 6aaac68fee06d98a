"""One streamed request to an OpenAI-compatible server, timed as its client sees it.

Whatever goes wrong is the kind of a `Reply`, not an exception: a benchmark goes on and counts it. Times: TTFT is from
sending the request to the first chunk with text, or to the end of an answer without any; ITL are the gaps between such
chunks; end to end is until the stream ends.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import httpx

from ...errors import ConfigurationError

__all__ = ["Endpoint", "Kind", "Reply", "ask", "connect", "first_model"]

Kind: TypeAlias = Literal["chat", "completions"]

_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_CAPABILITIES = {"chat": "chat", "completions": "completion"}  # as plait's own server lists them
_LIST_SECONDS = 30.0  # for the list of models
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TEXTS = ("content", "reasoning_content", "reasoning")  # of a chat's delta
_DONE = b"[DONE]"


@dataclass(frozen=True)
class Endpoint:
    """How all requests of a run are put."""

    kind: Kind
    temperature: float | None = None
    asks_usage: bool = True  # stream_options.include_usage
    ignores_eos: bool = False  # an extension of vLLM's: answers are as long as asked
    timeout_seconds: float = 600.0  # for a whole answer

    @property
    def path(self) -> str:
        """Path of the endpoint below the server's URL."""
        return _PATHS[self.kind]

    def body(self, model: str, prompt: str, max_tokens: int) -> dict[str, object]:
        """Returns the JSON of a request."""
        body: dict[str, object] = {"model": model, "max_tokens": max_tokens, "stream": True}
        if self.kind == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.asks_usage:
            body["stream_options"] = {"include_usage": True}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.ignores_eos:
            body["ignore_eos"] = True
        return body


@dataclass(frozen=True)
class Reply:
    """What came of a request. Times count from the moment it was sent."""

    end_seconds: float  # end to end
    failure: str | None = None  # its kind; None: a whole answer
    ttft_seconds: float | None = None
    gaps_seconds: tuple[float, ...] = ()  # between chunks with text
    output_tokens: int = 0
    input_tokens: int | None = None  # None: the server did not say
    counted_by: Literal["usage", "chunks"] = "usage"  # the output tokens
    joules: float | None = None  # None: the server did not say
    joules_source: str | None = None
    computing_seconds: float | None = None  # from its first step to the first token, as a plait server says

    @property
    def tpot_seconds(self) -> float | None:
        """(end to end - TTFT) / (tokens - 1); None where there is one token at most."""
        if self.ttft_seconds is None or self.output_tokens < 2:
            return None
        return (self.end_seconds - self.ttft_seconds) / (self.output_tokens - 1)


class _StreamError(Exception):
    """A stream that does not hold a whole answer; its text is the kind of failure."""


@dataclass
class _Stream:
    """What has come of a stream so far."""

    began: float
    chunk_seconds: list[float] = field(default_factory=list[float])  # of chunks with text
    finish_seconds: float | None = None  # of the chunk with the finish reason
    is_done: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    joules: float | None = None
    joules_source: str | None = None
    computing_seconds: float | None = None

    def take(self, line: bytes) -> None:
        """Reads one line of server-sent events."""
        if not line.startswith(b"data:"):
            return
        data = line.removeprefix(b"data:").strip()
        if data == _DONE:
            self.is_done = True
            return
        try:
            chunk = json.loads(data)
            if error := chunk.get("error"):
                raise _StreamError(f"error in the stream: {_code(error)}")
            self._usage(chunk.get("usage") or {})
            for choice in chunk.get("choices") or ():
                self._choice(choice)
        except (ValueError, TypeError, AttributeError):
            raise _StreamError("malformed stream") from None

    def _usage(self, usage: dict[str, int | float | str | None]) -> None:
        if (completion := usage.get("completion_tokens")) is not None:
            self.output_tokens = int(completion)
        if (prompt := usage.get("prompt_tokens")) is not None:
            self.input_tokens = int(prompt)
        if (joules := usage.get("joules")) is not None:
            self.joules, self.joules_source = float(joules), str(usage.get("joules_source"))
        first, queue_ms = usage.get("time_to_first_token"), usage.get("queue_ms")
        if first is not None and queue_ms is not None:
            self.computing_seconds = float(first) - float(queue_ms) / 1000

    def _choice(self, choice: dict[str, object]) -> None:
        now = time.perf_counter() - self.began
        delta = choice.get("delta")
        if choice.get("text") or (isinstance(delta, dict) and any(delta.get(name) for name in _TEXTS)):
            self.chunk_seconds.append(now)
        if choice.get("finish_reason") is not None:
            self.finish_seconds = now

    def reply(self) -> Reply:
        """Returns the whole answer.

        Raises:
            _StreamError: if it has no end.
        """
        end = time.perf_counter() - self.began
        if self.finish_seconds is None and not (self.is_done and self.chunk_seconds):
            raise _StreamError("answer cut off" if self.chunk_seconds else "no answer in the stream")
        times = self.chunk_seconds
        return Reply(
            end,
            ttft_seconds=times[0] if times else self.finish_seconds,
            gaps_seconds=tuple(after - before for before, after in itertools.pairwise(times)),
            output_tokens=len(times) if self.output_tokens is None else self.output_tokens,
            input_tokens=self.input_tokens,
            counted_by="chunks" if self.output_tokens is None else "usage",
            joules=self.joules,
            joules_source=self.joules_source,
            computing_seconds=self.computing_seconds,
        )


def connect(url: str, endpoint: Endpoint, api_key: str | None) -> httpx.AsyncClient:
    """Returns a client with as many connections as it takes; `ask` limits the time of each request."""
    return httpx.AsyncClient(
        base_url=url,
        headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        timeout=endpoint.timeout_seconds,
        trust_env=httpx.URL(url).host not in _LOOPBACK,  # no proxy leads to this machine itself
    )


async def first_model(http: httpx.AsyncClient, endpoint: Endpoint) -> str:
    """Returns the first model of a server that can be asked; where it does not say what its models can, the first.

    Raises:
        ConfigurationError: if there is none, or the server does not say.
    """
    capability = _CAPABILITIES[endpoint.kind]
    try:
        response = await http.get("/v1/models", timeout=_LIST_SECONDS)
        response.raise_for_status()
        listed = response.json()["data"]
        names = [item["id"] for item in listed if capability in item.get("capabilities", [capability])]
    except httpx.HTTPStatusError as error:
        raise ConfigurationError(
            f"{error.request.url} answers {error.response.status_code}; name a --model, or give the --api-key"
        ) from None
    except httpx.HTTPError as error:
        raise ConfigurationError(f"cannot reach {http.base_url}: {error or type(error).__name__}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigurationError(f"{http.base_url}/v1/models is no list of models; name a --model") from None
    if not names:
        raise ConfigurationError(f"no model of {http.base_url} does {endpoint.kind}; name a --model")
    return names[0]


async def ask(http: httpx.AsyncClient, endpoint: Endpoint, model: str, prompt: str, max_tokens: int) -> Reply:
    """Sends a request and returns what came of it; raises nothing but what cancels it."""
    body = endpoint.body(model, prompt, max_tokens)
    stream = _Stream(time.perf_counter())
    try:
        async with (
            asyncio.timeout(endpoint.timeout_seconds),
            http.stream("POST", endpoint.path, json=body) as response,
        ):
            if response.status_code != httpx.codes.OK:
                return _failed(stream, await _refusal(response))
            async for line in _lines(response):
                stream.take(line)
        return stream.reply()
    except _StreamError as error:
        return _failed(stream, str(error))
    except (TimeoutError, httpx.TimeoutException):
        return _failed(stream, "timeout")
    except httpx.ConnectError:
        return _failed(stream, "cannot connect")
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        return _failed(stream, "connection lost")
    except httpx.HTTPError as error:
        return _failed(stream, type(error).__name__)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yields the lines of an event stream: other characters that end a line of text stand in JSON as they are."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _failed(stream: _Stream, kind: str) -> Reply:
    return Reply(time.perf_counter() - stream.began, kind)


async def _refusal(response: httpx.Response) -> str:
    """Returns the status, and the code of OpenAI's error object if there is one."""
    status = f"HTTP {response.status_code}"
    try:
        return f"{status} {_code(json.loads(await response.aread())['error'])}"
    except (ValueError, TypeError, KeyError):
        return status


def _code(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or "unknown")
    return str(error)

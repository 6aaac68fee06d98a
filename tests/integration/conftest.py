"""A real HTTP server on a free loopback port, over an engine whose answers can be read off the question."""

import asyncio
import gc
import json
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence

import httpx
import numpy as np
import openai
import pytest

from plait.errors import ContextLengthError, ExecutionError, InvalidRequestError, ModelNotFoundError, QueueFullError
from plait.runtime.metrics import Metrics
from plait.runtime.request import (
    ClassifyResult,
    EmbedResult,
    FinishReason,
    ModelStatus,
    Piece,
    RouteStatus,
    SamplingParams,
    ToolCallDelta,
    ToolUse,
    Usage,
)
from plait.runtime.server import Engine, create_app
from plait.runtime.server.serve import listen, make_server

CONTEXT_TOKENS = 400
MAX_BODY_BYTES = 100_000


def _status(name: str, residency: str, *capabilities: str, aliases: tuple[str, ...] = ()) -> ModelStatus:
    return ModelStatus(
        name=name,
        aliases=aliases,
        capabilities=capabilities,
        residency=residency,  # type: ignore[arg-type]
        pin=None,
        context_length=CONTEXT_TOKENS,
        max_completion_tokens=CONTEXT_TOKENS - 1,
        weights_bytes=1000,
        kv_bytes=200,
        workspace_bytes=30,
    )


@pytest.fixture(scope="module", autouse=True)
def only_own_arrays() -> None:
    """Drops arrays that earlier files left in cycles: a runtime measures those of the whole process."""
    gc.collect()


class EchoEngine:
    """Answers with the last message, a character a token (a character is its code point).

    Some messages make it behave: "full" and "broken" fail before the first token, "breaks" and "overflows" after
    some, "forever" never ends on its own. Where a tool must be called, the first is, with the message.
    """

    name = "echo"

    def __init__(self) -> None:
        self.metrics = Metrics(["chat", "embed"])
        self.params: list[SamplingParams] = []
        self.num_active = 0
        self.num_finished = 0
        self.is_draining = False

    def models(self) -> tuple[ModelStatus, ...]:
        return (
            _status("chat", "hot", "chat", "completion", aliases=("assistant", "org/assistant")),
            _status("embed", "warm", "embedding"),
            _status("guard", "cold", "classification"),
            _status("rank", "cold", "score"),
        )

    def resolve(self, name: str) -> str:
        for status in self.models():
            if name in (status.name, *status.aliases):
                return status.name
        raise ModelNotFoundError(f"no model {name!r}; there are: chat, embed", param="model")

    def routes(self) -> tuple[RouteStatus, ...]:
        return (RouteStatus("any", ("chat",), "cheapest", ("chat",), "hot", CONTEXT_TOKENS, CONTEXT_TOKENS - 1),)

    async def route_async(self, name: str) -> str:
        return "chat" if name == "any" else self.resolve(name)

    def chat_prompt(
        self, model: str, messages: Sequence[Mapping[str, object]], tools: ToolUse | None = None
    ) -> list[int]:
        if messages[0]["role"] == "assistant":
            raise InvalidRequestError("the messages must start with a user's", param="messages")
        return self.tokenize(model, str(messages[-1]["content"]))

    def tokenize(self, model: str, text: str) -> list[int]:
        return [ord(character) for character in text]

    async def generate_async(
        self, model: str, prompt: Sequence[int], params: SamplingParams
    ) -> AsyncGenerator[Piece, None]:
        text = "".join(map(chr, prompt))
        self.params.append(params)
        if len(prompt) + (params.max_tokens or 1) > CONTEXT_TOKENS:
            raise ContextLengthError(f"{len(prompt)} tokens do not fit {CONTEXT_TOKENS}; shorten the prompt")
        if text == "full":
            raise QueueFullError("the queue holds 8 requests, its limit; try again")
        if text == "broken":
            raise ExecutionError("secret of the device")
        self.num_active += 1
        self.metrics.queue(model, running=self.num_active, waiting=0)
        try:
            async for piece in self._answer(text, params):
                yield piece
            self.num_finished += 1
        finally:
            self.num_active -= 1

    async def _answer(self, text: str, params: SamplingParams) -> AsyncGenerator[Piece, None]:
        if params.tools is not None and params.tools.choice == "required":
            call = ToolCallDelta(0, "call_1", params.tools.tools[0].name, json.dumps({"text": text}))
            usage = Usage(len(text), 1, 0.02, 0.01, time_to_first_token_seconds=0.1, total_seconds=0.5)
            yield Piece("", (1,), "tool_calls", usage, tool_calls=(call,))
            return
        answer = text[: params.max_tokens]
        for count, character in enumerate(answer):
            await asyncio.sleep(0.001)
            if text == "breaks" and count == 3:
                raise ExecutionError("secret of the device")
            if text == "overflows" and count == 3:
                raise ContextLengthError("the context is full")
            yield Piece(character, (ord(character),))
        while text == "forever":
            await asyncio.sleep(0.001)
            yield Piece(".", (ord("."),))
        if text == "silent forever":
            await asyncio.Event().wait()
        reason: FinishReason = "length" if len(answer) < len(text) else "stop"
        usage = Usage(len(text), len(answer), 0.02, 0.01, time_to_first_token_seconds=0.1, total_seconds=0.5)
        yield Piece("", (), reason, usage)

    async def embed_async(self, model: str, inputs: Sequence[Sequence[int]]) -> EmbedResult:
        """Embeds as (tokens, first token, a third)."""
        if max(map(len, inputs)) > CONTEXT_TOKENS:
            raise ContextLengthError(f"an input has more than {CONTEXT_TOKENS} tokens; shorten it")
        self.num_active += 1
        try:
            if inputs[0] == self.tokenize(model, "forever"):
                await asyncio.Event().wait()
        finally:
            self.num_active -= 1
        vectors = np.array([[len(tokens), tokens[0], 1 / 3] for tokens in inputs], np.float32)
        return EmbedResult(vectors, Usage(sum(map(len, inputs)), 0, 0.02, 0.01, 0.0, 0.5))

    def tokenize_pair(self, model: str, first: str, second: str) -> list[int]:
        return self.tokenize(model, f"{first}\0{second}")

    async def classify_async(self, model: str, inputs: Sequence[Sequence[int]]) -> ClassifyResult:
        """Gives each input a probability of 1 / its number of tokens; the "guard" has the opposite as a label too."""
        result = await self.embed_async(model, inputs)
        scores = 1 / result.vectors[:, :1]
        if model == "rank":
            return ClassifyResult(("LABEL_0",), scores, result.usage)
        return ClassifyResult(("bad", "good"), np.concatenate([scores, 1 - scores], axis=1), result.usage)

    async def load_model_async(self, model: str, *, wait: bool = True) -> None:
        raise ExecutionError(f"this engine has no memory to load {model} to")

    async def unload_model_async(self, model: str, tier: str = "disk", *, wait: bool = True) -> None:
        raise ExecutionError(f"this engine has no memory to unload {model} from")

    def is_ready(self) -> bool:
        return not self.is_draining


class RunningServer:
    """A server in a thread of its own."""

    def __init__(self, engine: Engine, **options) -> None:
        listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = make_server(create_app(engine, **options), drain_seconds=5)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture(scope="module")
def server_url(engine: EchoEngine) -> Iterator[str]:
    server = RunningServer(engine, max_body_bytes=MAX_BODY_BYTES)
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def http(server_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server_url, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def keyed_http() -> Iterator[httpx.Client]:
    server = RunningServer(EchoEngine(), api_keys=["sesame", "open"])
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
    server.stop()

"""What the server needs of a runtime, and the checks that every endpoint starts with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Literal, Protocol

from fastapi import Request

from ...errors import InvalidRequestError, ModelNotFoundError
from ..metrics import Metrics
from ..request import ClassifyResult, EmbedResult, ModelStatus, Piece, RouteStatus, SamplingParams, ToolUse

__all__ = ["Engine", "choose_model", "engine_of", "find_model", "find_route"]


class Engine(Protocol):
    """A runtime as the server sees it; thread-safe, made outside of the event loop."""

    @property
    def name(self) -> str:
        """Name of the bundle."""
        ...

    @property
    def metrics(self) -> Metrics:
        """What `/metrics` shows."""
        ...

    def models(self) -> tuple[ModelStatus, ...]:
        """Returns every model and where it is now."""
        ...

    def resolve(self, name: str) -> str:
        """Returns the canonical name for a name or alias.

        Raises:
            ModelNotFoundError: if there is none.
        """
        ...

    def routes(self) -> tuple[RouteStatus, ...]:
        """Returns every name for models that can stand for each other."""
        ...

    async def route_async(self, name: str) -> str:
        """Returns the canonical name of the model that answers to a name, alias or route now.

        Raises:
            ModelNotFoundError: if there is none.
        """
        ...

    def chat_prompt(
        self, model: str, messages: Sequence[Mapping[str, object]], tools: ToolUse | None = None
    ) -> list[int]:
        """Returns the tokens of a conversation, and of tools on offer, in the model's template.

        Slow enough to be kept off the event loop.

        Raises:
            InvalidRequestError: if the template refuses the messages, or the model has none.
        """
        ...

    def tokenize(self, model: str, text: str) -> list[int]:
        """Returns the tokens of a text. Slow enough to be kept off the event loop."""
        ...

    def tokenize_pair(self, model: str, first: str, second: str) -> list[int]:
        """Returns the tokens of two texts in one sequence. Slow enough to be kept off the event loop."""
        ...

    def generate_async(self, model: str, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Piece, None]:
        """Yields an answer piece by piece. Closing the generator cancels the request and frees what it holds.

        Raises:
            RequestError: on the first `anext`, if the request is not taken.
        """
        ...

    async def embed_async(self, model: str, inputs: Sequence[Sequence[int]]) -> EmbedResult:
        """Returns the vectors of token lists. Cancellation stops the work.

        Raises:
            RequestError: if the request is not taken.
        """
        ...

    async def classify_async(self, model: str, inputs: Sequence[list[int]]) -> ClassifyResult:
        """Returns what a classifier says of token lists. Cancellation stops the work.

        Raises:
            RequestError: if the request is not taken.
        """
        ...

    async def load_model_async(self, model: str, *, wait: bool = True) -> None:
        """Makes a model hot, in its turn. Cancellation takes the request back.

        Raises:
            RequestError: if it is not taken.
        """
        ...

    async def unload_model_async(self, model: str, tier: Literal["ddr", "disk"] = "disk", *, wait: bool = True) -> None:
        """Drops a model from the tiers above one, in its turn. Cancellation takes the request back.

        Raises:
            RequestError: if it is not taken.
        """
        ...

    def is_ready(self) -> bool:
        """Whether requests are taken: not while starting or draining."""
        ...


def engine_of(request: Request) -> Engine:
    """Returns the engine that the app of a request serves."""
    return request.app.state.engine


def find_model(engine: Engine, name: str) -> ModelStatus:
    """Returns a model by name or alias.

    Raises:
        ModelNotFoundError: if there is none.
    """
    canonical = engine.resolve(name)
    for status in engine.models():
        if status.name == canonical:
            return status
    raise ModelNotFoundError(f"model {name!r} has left the bundle {engine.name!r}", param="model")


def find_route(engine: Engine, name: str) -> RouteStatus | None:
    """Returns the route of a name, if it is one."""
    return next((route for route in engine.routes() if route.name == name), None)


async def choose_model(engine: Engine, name: str, *capabilities: str) -> str:
    """Returns the canonical name of the model that answers to a name, alias or route, and can do one of some things.

    Raises:
        ModelNotFoundError: if there is no such model.
        InvalidRequestError: if it can do none of them; the message names models that can.
    """
    status = find_route(engine, name) or find_model(engine, name)
    if set(capabilities) & set(status.capabilities):
        return await engine.route_async(name)
    able = [other.name for other in engine.models() if set(capabilities) & set(other.capabilities)]
    raise InvalidRequestError(
        f"model {name!r} cannot do this: it has {', '.join(status.capabilities) or 'no capability'}, this endpoint "
        f"needs {' or '.join(capabilities)}; models that have it: {', '.join(able) or 'none'}",
        param="model",
        code="unsupported_model",
    )

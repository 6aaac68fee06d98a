"""The runtime: a bundle that answers.

`Runtime` is the way in from Python, and what the HTTP server stands on. It turns messages and texts into tokens, hands
requests to the engine's threads (`core.py`) and turns replies back into text, for threads and for coroutines alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from jaxtyping import Float

from ...compiler.bundle.manifest import ModelEntry
from ...compiler.bundle.reader import Bundle, open_bundle
from ...compiler.bundle.spec import parse_bytes
from ...compiler.target import Target
from ...errors import ConfigurationError
from ..canary import Canaries, CanaryPolicy
from ..clock import MonotonicClock
from ..core import EngineCore, Watcher
from ..energy import energy_meter
from ..executor import JaxExecutor
from ..memory_use import TierUse
from ..metrics import Metrics
from ..request import ClassifyResult, Completion, EmbedResult, ModelStatus, Piece, RouteStatus, SamplingParams, ToolUse
from ..residency import check_budget
from ..scheduler import Scheduler
from ..tiers import TransferRecord
from ..tool_calls import TOOL_FORMATS, ToolFormat
from ..workflow import LookAhead
from .encoding import Encoding, check_scores
from .exchange import Exchange
from .generation import Generation, gather
from .loading import Loading
from .routes import Routes
from .served import Messages, Prompt, Served, ServedModels, TextOrPair

__all__ = ["Runtime"]


class Runtime:
    """Runs the models of a bundle on this machine, under its memory budget.

        with Runtime("agent.plait", hbm="350MiB") as runtime:
            for piece in runtime.stream("chat", "Once upon a time"):
                print(piece, end="")

    Args:
        bundle: An opened bundle or its path.
        hbm: Bytes that the runtime may use of hbm, as a number or text; the bundle's own budget by default.
        ddr: The same of ddr.
        target: Another description of this machine than the bundle's, e.g. a calibrated one.
        max_requests: Requests under way at once; further ones are refused.
        queue_timeout_seconds: How long a request may wait for its first step; None for ever.
        patience_seconds: For how long a request that needs a switch lets later ones go first whose models are there: 0
            for the least latency, more for fewer switches and more throughput.
        prefill_tokens: Most tokens of a prompt that are computed at once while answers are being generated; None: as
            many as the programs take.
        tool_parsers: Name of the form in which a model writes tool calls, by the model's name; by default its chat
            template tells.
        canary: After which wakes a model is asked what it said when it was bundled, once nobody waits: the first that
            goes well, always or never. One that says something else answers nobody until it is loaded anew.
        progress: Told how many of the programs are loaded.

    Raises:
        BundleError: if the bundle cannot be opened, or any of its files is not what its manifest says.
        DoesNotFitError: if a model can never be hot within the budget.
        ConfigurationError: if a tool parser is none, or of no model, or the patience is no time, or for ever.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        hbm: int | str | None = None,
        ddr: int | str | None = None,
        target: Target | None = None,
        max_requests: int = 1024,
        queue_timeout_seconds: float | None = None,
        patience_seconds: float = 0.0,
        prefill_tokens: int | None = None,
        tool_parsers: Mapping[str, str] | None = None,
        canary: CanaryPolicy = "first",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        manifest = self.bundle.manifest
        self.target = manifest.target if target is None else target
        self.name = manifest.name
        tool_formats = _tool_formats(tool_parsers or {}, manifest.models)
        self.metrics = Metrics([entry.name for entry in manifest.models])
        budget = dataclasses.replace(
            manifest.budget,
            hbm=manifest.budget.hbm if hbm is None else parse_bytes(hbm),
            ddr=manifest.budget.ddr if ddr is None else parse_bytes(ddr),
        )
        tiered = self.target.kind == "tiered"
        # The budget is checked with the manifest's bytes before anything is loaded, and again with this machine's.
        check_budget(manifest.models, budget, tiered=tiered)
        for relative in manifest.files:
            self.bundle.ensure_verified(relative)
        executor = JaxExecutor(self.bundle, self.target, hbm_bytes=budget.hbm)
        entries = executor.load_programs(progress or (lambda done, total: None))
        self._scheduler = Scheduler(
            entries,
            budget,
            tiered=tiered,
            queue_timeout_seconds=queue_timeout_seconds,
            patience_seconds=patience_seconds,
            prefill_tokens=prefill_tokens,
            kv_bytes_per_s=self.target.link("ddr", "hbm").bandwidth_bytes_per_s if tiered else None,
            workflows=manifest.workflows.values(),
            routes=manifest.routes,
            speculative=manifest.speculative,
            links=self.target.links,
        )
        self._served = ServedModels(self.bundle, entries, manifest.routes, tool_formats)
        clock = MonotonicClock()
        self._canaries = Canaries(entries, canary)
        self._core = EngineCore(
            self._scheduler,
            executor,
            clock,
            self.metrics,
            max_requests=max_requests,
            energy=energy_meter(self.target, manifest.num_devices),
            canaries=self._canaries,
        )
        exchange = Exchange(self._core, clock, self.metrics)
        self._generation = Generation(exchange)
        self._encoding = Encoding(exchange)
        self._routes = Routes(manifest.routes, self._served, exchange)
        self._loading = Loading(exchange, is_tiered=tiered)
        self._core.start()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Fails what is under way, ends the threads and frees all memory."""
        self._core.close()

    # What there is

    def models(self) -> tuple[ModelStatus, ...]:
        """Returns every model and where it is now."""
        return tuple(map(self._status, self._served))

    def resolve(self, name: str) -> str:
        """Returns the canonical name for a name or alias.

        Raises:
            ModelNotFoundError: if there is none.
        """
        return self._served.resolve(name)

    def routes(self) -> tuple[RouteStatus, ...]:
        """Returns every name for models that can stand for each other."""
        return self._routes.status(self.models())

    async def route_async(self, name: str) -> str:
        """Returns the canonical name of the model that answers to a name, alias or route now.

        Raises:
            ModelNotFoundError: if there is none.
            RequestError: if no requests are taken.
        """
        return (await self._routes.choose_async(name)).entry.name

    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._core.is_running

    def tier_uses(self) -> tuple[TierUse, ...]:
        """Returns, for each tier, the budget, what is charged to it and what JAX holds in it."""
        return self._core.tier_uses()

    def transfers(self) -> tuple[TransferRecord, ...]:
        """Returns the newest transfers, oldest first."""
        return tuple(self._core.records)

    # What a benchmark looks at and changes

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, no transfer either."""
        return self._scheduler.is_idle

    def look_ahead_by(self, look_ahead: LookAhead) -> None:
        """Has requests foretold by another look-ahead from now on. Only while nothing is under way."""
        self._scheduler.foresight.look_ahead = look_ahead

    def watch(self, watcher: Watcher | None) -> None:
        """Has every event and action told to a watcher, on the engine's thread; None: to nobody."""
        self._core.watcher = watcher

    # Where models are

    def load_model(self, model: str, *, wait: bool = True) -> None:
        """Makes a model hot, in its turn among the requests; busy models are not evicted for it.

        Args:
            model: Name or alias.
            wait: Return when it is hot, rather than at once.

        Raises:
            RequestError: if the request is not taken.
            ExecutionError: if the model cannot be brought.
        """
        self._loading.run(self._loading.load(self._served[model].entry), wait=wait)

    async def load_model_async(self, model: str, *, wait: bool = True) -> None:
        """Makes a model hot; as `load_model`."""
        await self._loading.run_async(self._loading.load(self._served[model].entry), wait=wait)

    def unload_model(self, model: str, tier: Literal["ddr", "disk"] = "disk", *, wait: bool = True) -> None:
        """Drops a model from memory, once what was asked of it before has been answered.

        A request that comes later brings it back; until then it is not fetched ahead.

        Args:
            model: Name or alias.
            tier: Where it is left: on disk, or in ddr as well.
            wait: Return when it is gone, rather than at once.

        Raises:
            ModelStateError: if the model is pinned to a tier that it would leave.
            RequestError: if the request is not taken.
        """
        self._loading.run(self._loading.unload(self._served[model].entry, tier), wait=wait)

    async def unload_model_async(self, model: str, tier: Literal["ddr", "disk"] = "disk", *, wait: bool = True) -> None:
        """Drops a model from memory; as `unload_model`."""
        await self._loading.run_async(self._loading.unload(self._served[model].entry, tier), wait=wait)

    # Text to tokens

    def tokenize(self, model: str, text: str) -> list[int]:
        """Returns the tokens of a text, with those that the model wants before and after it.

        Special tokens spelled out in the text stay text; give tokens where they are wanted.
        """
        return self._served[model].tokenize(text)

    def tokenize_pair(self, model: str, first: str, second: str) -> list[int]:
        """Returns the tokens of two texts in one sequence, with the special tokens around and between them."""
        return self._served[model].tokenizer.encode_pair(first, second)

    def chat_prompt(self, model: str, messages: Messages, tools: ToolUse | None = None) -> list[int]:
        """Returns the tokens of a conversation in the model's template; special tokens are the template's alone.

        Tools are for the template to describe, or described in a system message where it does not know them.

        Raises:
            InvalidRequestError: if the template refuses the messages, or the model has none.
        """
        return self._served[model].tokenize_chat(messages, tools)

    # Answers

    def stream(self, model: str, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """Yields the text of an answer as it comes. Closing the iterator cancels the request.

        Args:
            model: Name, alias or route.
            prompt: A text to go on with, a conversation, or tokens.
            params: How the answer is drawn; the model's defaults where it says nothing.

        Raises:
            RequestError: if the request is not taken.
            ExecutionError: if it fails.
        """
        for piece in self.pieces(model, prompt, params):
            if piece.text:
                yield piece.text

    def complete(self, model: str, prompt: Prompt, params: SamplingParams | None = None) -> Completion:
        """Returns a whole answer; arguments and errors as for `stream`."""
        return gather(list(self.pieces(model, prompt, params)))

    def pieces(self, model: str, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Yields an answer piece by piece, the last one with finish reason and usage; as `stream` otherwise."""
        served, params = self._routes.choose(model), params or SamplingParams()
        yield from self._generation.pieces(served, served.tokenize_prompt(prompt, params.tools), params)

    async def stream_async(
        self, model: str, prompt: Prompt, params: SamplingParams | None = None
    ) -> AsyncIterator[str]:
        """Yields the text of an answer as it comes; as `stream`."""
        served, params = await self._routes.choose_async(model), params or SamplingParams()
        tokens = served.tokenize_prompt(prompt, params.tools)
        async with aclosing(self._generation.pieces_async(served, tokens, params)) as pieces:
            async for piece in pieces:
                if piece.text:
                    yield piece.text

    async def complete_async(self, model: str, prompt: Prompt, params: SamplingParams | None = None) -> Completion:
        """Returns a whole answer; as `complete`."""
        served, params = await self._routes.choose_async(model), params or SamplingParams()
        tokens = served.tokenize_prompt(prompt, params.tools)
        return gather([piece async for piece in self._generation.pieces_async(served, tokens, params)])

    def generate_async(self, model: str, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Piece, None]:
        """Yields the answer to a prompt of tokens, as `pieces`. Closing the generator cancels the request."""
        return self._generation.pieces_async(self._served[model], prompt, params)

    # Vectors

    def embed(self, model: str, texts: Sequence[str] | str) -> Float[np.ndarray, "texts size"]:
        """Returns one vector for each text, f32 [texts, size].

        Raises:
            RequestError: if the request is not taken, e.g. a text is longer than the model's sequence.
            ExecutionError: if it fails.
        """
        served, listed = self._routes.choose(model), [texts] if isinstance(texts, str) else texts
        return self._encoding.embed(served, [served.tokenize(text) for text in listed]).vectors

    async def embed_async(self, model: str, inputs: Sequence[Sequence[int]] | Sequence[str]) -> EmbedResult:
        """Returns one vector for each text or list of tokens, and the usage; as `embed`."""
        served = await self._routes.choose_async(model)
        tokens = [served.tokenize(item) if isinstance(item, str) else item for item in inputs]
        return await self._encoding.embed_async(served, tokens)

    # Labels and scores

    def classify(self, model: str, inputs: Sequence[TextOrPair] | str) -> ClassifyResult:
        """Returns the probability of each of a classifier's labels for each text or pair of texts.

        A model of one label, or of labels that hold independently, gives each of them a probability of its own (a
        sigmoid); otherwise those of an input sum to 1 (a softmax).

        Raises:
            RequestError: if the request is not taken, e.g. a pair is longer than the model's sequence.
            ExecutionError: if it fails.
        """
        return self._classify(self._routes.choose(model), [inputs] if isinstance(inputs, str) else inputs)

    async def classify_async(self, model: str, inputs: Sequence[TextOrPair | list[int]]) -> ClassifyResult:
        """Returns the probabilities for texts, pairs or lists of tokens; as `classify`."""
        return await self._classify_async(await self._routes.choose_async(model), inputs)

    def score(self, model: str, query: str, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Returns how well each text answers a query, f32 [texts] between 0 and 1; errors as for `classify`."""
        served = self._routes.choose(model)
        check_scores(served)
        return self._classify(served, [(query, text) for text in texts]).probabilities[:, 0]

    async def score_async(self, model: str, query: str, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Returns how well each text answers a query; as `score`."""
        served = await self._routes.choose_async(model)
        check_scores(served)
        return (await self._classify_async(served, [(query, text) for text in texts])).probabilities[:, 0]

    def _classify(self, served: Served, inputs: Sequence[TextOrPair]) -> ClassifyResult:
        return self._encoding.classify(served, [served.tokenize_input(item) for item in inputs])

    async def _classify_async(self, served: Served, inputs: Sequence[TextOrPair | list[int]]) -> ClassifyResult:
        tokens = [item if isinstance(item, list) else served.tokenize_input(item) for item in inputs]
        return await self._encoding.classify_async(served, tokens)

    def _status(self, served: Served) -> ModelStatus:
        entry, queue = served.entry, self._scheduler.queues[served.entry.name]
        return ModelStatus(
            name=entry.name,
            aliases=entry.aliases,
            capabilities=entry.capabilities,
            residency=self._scheduler.residency.residency(entry.name),
            pin=entry.pin,
            context_length=entry.sequence,
            max_completion_tokens=entry.sequence - 1 if entry.kv else 0,
            weights_bytes=entry.weights_bytes,
            kv_bytes=entry.kv_bytes,
            workspace_bytes=entry.workspace_bytes,
            health=self._canaries.health(entry.name),
            tier_bytes=self._core.tier_bytes(entry.name),
            num_running=queue.num_running,
            num_waiting=len(queue.waiting),
            last_move=self._core.last_moves.get(entry.name),
        )


def _tool_formats(parsers: Mapping[str, str], models: Sequence[ModelEntry]) -> dict[str, ToolFormat]:
    names = [name for entry in models for name in (entry.name, *entry.aliases)]
    for model, parser in parsers.items():
        if model not in names:
            raise ConfigurationError(f"no model {model!r} for a tool parser; the bundle has {', '.join(names)}")
        if parser not in TOOL_FORMATS:
            raise ConfigurationError(f"unknown tool parser {parser!r}; there are {', '.join(TOOL_FORMATS)}")
    return {model: TOOL_FORMATS[parser] for model, parser in parsers.items()}

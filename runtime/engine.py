"""The runtime: a bundle that answers.

`Runtime` is the way in from Python, and what the HTTP server stands on. It turns messages and texts into tokens, hands
requests to the engine's threads (`core.py`) and turns replies back into text, for threads and for coroutines alike.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import queue
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.bundle.reader import Bundle, open_bundle
from ..compiler.bundle.spec import parse_bytes
from ..compiler.target import Target
from ..errors import (
    ContextLengthError,
    ExecutionError,
    InvalidRequestError,
    ModelNotFoundError,
    RequestTimeoutError,
)
from ..models.config import EncoderConfig
from .answer import Answer
from .chat_template import ChatTemplate
from .clock import MonotonicClock
from .core import EngineCore, Outcome, TierUse
from .events import EmbedWork, GenerateWork, Request, Sampling
from .executor import JaxExecutor
from .metrics import Metrics
from .probabilities import probabilities
from .request import MAX_LOGPROBS, ClassifyResult, Completion, EmbedResult, ModelStatus, Piece, SamplingParams, Usage
from .residency import check_budget
from .scheduler import Scheduler
from .structured import Grammars
from .tiers import TransferRecord
from .tokenizer import Tokenizer

__all__ = ["Messages", "Prompt", "Runtime", "TextOrPair"]

Messages: TypeAlias = Sequence[Mapping[str, str]]  # {"role": ..., "content": ...} each
Prompt: TypeAlias = str | Messages | Sequence[int]  # a text to go on with, a conversation, or tokens
TextOrPair: TypeAlias = str | tuple[str, str]

_SEED_BITS = 63


class _Served:
    """What the runtime keeps of each model beside its entry."""

    def __init__(self, bundle: Bundle, entry: ModelEntry) -> None:
        self.entry = entry
        self.tokenizer = Tokenizer(bundle.read_bytes(entry.tokenizer).decode())
        self.grammars = Grammars(self.tokenizer, entry.eos_token_ids)
        self.template = (
            ChatTemplate(
                bundle.read_bytes(entry.chat_template).decode(), bos_token=entry.bos_token, eos_token=entry.eos_token
            )
            if entry.chat_template is not None
            else None
        )


class Runtime:
    """Runs the models of a bundle on this machine, under its memory budget.

        with Runtime("agent.plait", hbm="330MiB") as runtime:
            for piece in runtime.stream("chat", "Once upon a time"):
                print(piece, end="")

    Args:
        bundle: An opened bundle or its path.
        hbm: Bytes that the runtime may use of hbm, as a number or text; the bundle's own budget by default.
        ddr: The same of ddr.
        target: Another description of this machine than the bundle's, e.g. a calibrated one.
        max_requests: Requests under way at once; further ones are refused.
        queue_timeout_seconds: How long a request may wait for its first step; None for ever.
        progress: Told how many of the programs are loaded.

    Raises:
        BundleError: if the bundle cannot be opened, or any of its files is not what its manifest says.
        DoesNotFitError: if a model can never be hot within the budget.
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
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        manifest = self.bundle.manifest
        self.target = manifest.target if target is None else target
        self.name = manifest.name
        self.metrics = Metrics([entry.name for entry in manifest.models])
        self._clock = MonotonicClock()
        self._ids = itertools.count(1)
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
        self._scheduler = Scheduler(entries, budget, tiered=tiered, queue_timeout_seconds=queue_timeout_seconds)
        self._served = {entry.name: _Served(self.bundle, entry) for entry in entries}
        self._names = {name: entry.name for entry in entries for name in (entry.name, *entry.aliases)}
        self._core = EngineCore(self._scheduler, executor, self._clock, self.metrics, max_requests=max_requests)
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
        return tuple(
            ModelStatus(
                name=name,
                aliases=served.entry.aliases,
                capabilities=served.entry.capabilities,
                residency=self._scheduler.residency.residency(name),
                pin=served.entry.pin,
                context_length=served.entry.sequence,
                max_completion_tokens=served.entry.sequence - 1 if served.entry.kv else 0,
                weights_bytes=served.entry.weights_bytes,
                kv_bytes=served.entry.kv_bytes,
                workspace_bytes=served.entry.workspace_bytes,
            )
            for name, served in self._served.items()
        )

    def resolve(self, name: str) -> str:
        """Returns the canonical name for a name or alias.

        Raises:
            ModelNotFoundError: if there is none.
        """
        if name not in self._names:
            known = ", ".join(self._served)
            raise ModelNotFoundError(f"model {name!r} is not in this bundle; it has {known}", param="model")
        return self._names[name]

    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._core.is_running

    def tier_uses(self) -> tuple[TierUse, ...]:
        """Returns, for each tier, the budget, what is charged to it and what JAX holds in it."""
        return self._core.tier_uses()

    def transfers(self) -> tuple[TransferRecord, ...]:
        """Returns the newest transfers, oldest first."""
        return tuple(self._core.records)

    # Text to tokens

    def tokenize(self, model: str, text: str) -> list[int]:
        """Returns the tokens of a text, with those that the model wants before and after it.

        Special tokens spelled out in the text stay text; give tokens where they are wanted.
        """
        return self._served[self.resolve(model)].tokenizer.encode(text, add_special_tokens=True)

    def tokenize_pair(self, model: str, first: str, second: str) -> list[int]:
        """Returns the tokens of two texts in one sequence, with the special tokens around and between them."""
        return self._served[self.resolve(model)].tokenizer.encode_pair(first, second)

    def chat_prompt(self, model: str, messages: Messages) -> list[int]:
        """Returns the tokens of a conversation in the model's template; special tokens are the template's alone.

        Raises:
            InvalidRequestError: if the template refuses the messages, or the model has none.
        """
        served = self._served[self.resolve(model)]
        if served.template is None:
            raise InvalidRequestError(f"model {model!r} has no chat template", param="messages")
        return served.template.encode(messages, served.tokenizer)

    # Answers

    def stream(self, model: str, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """Yields the text of an answer as it comes. Closing the iterator cancels the request.

        Args:
            model: Name or alias.
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
        return _gather(list(self.pieces(model, prompt, params)))

    def pieces(self, model: str, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Yields an answer piece by piece, the last one with finish reason and usage; as `stream` otherwise."""
        request, answer = self._generation(model, self._tokens(model, prompt), params or SamplingParams())
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._core.submit(request, outcomes.put)
        try:
            while True:
                piece = self._piece(request, answer, outcomes.get())
                if piece is not None:
                    yield piece
                    if piece.finish_reason is not None:
                        return
        finally:
            self._abandon(request)

    async def stream_async(
        self, model: str, prompt: Prompt, params: SamplingParams | None = None
    ) -> AsyncIterator[str]:
        """Yields the text of an answer as it comes; as `stream`."""
        pieces = self.generate_async(model, self._tokens(model, prompt), params or SamplingParams())
        try:
            async for piece in pieces:
                if piece.text:
                    yield piece.text
        finally:
            await pieces.aclose()

    async def complete_async(self, model: str, prompt: Prompt, params: SamplingParams | None = None) -> Completion:
        """Returns a whole answer; as `complete`."""
        tokens = self._tokens(model, prompt)
        return _gather([piece async for piece in self.generate_async(model, tokens, params or SamplingParams())])

    async def generate_async(
        self, model: str, prompt: Sequence[int], params: SamplingParams
    ) -> AsyncGenerator[Piece, None]:
        """Yields the answer to a prompt of tokens, as `pieces`. Closing the generator cancels the request."""
        if params.structure is None:
            request, answer = self._generation(model, prompt, params)
        else:  # grammars take their time
            request, answer = await asyncio.to_thread(self._generation, model, prompt, params)
        outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self._core.submit(request, _into(outcomes))
        try:
            while True:
                piece = self._piece(request, answer, await outcomes.get())
                if piece is not None:
                    yield piece
                    if piece.finish_reason is not None:
                        return
        finally:
            self._abandon(request)

    # Vectors

    def embed(self, model: str, texts: Sequence[str] | str) -> Float[np.ndarray, "texts size"]:
        """Returns one vector for each text, f32 [texts, size].

        Raises:
            RequestError: if the request is not taken, e.g. a text is longer than the model's sequence.
            ExecutionError: if it fails.
        """
        listed = [texts] if isinstance(texts, str) else texts
        tokens = [self.tokenize(model, text) for text in listed]
        return self._encode(self._encoding(model, tokens, is_classifier=False)).vectors

    async def embed_async(self, model: str, inputs: Sequence[Sequence[int]] | Sequence[str]) -> EmbedResult:
        """Returns one vector for each text or list of tokens, and the usage; as `embed`."""
        tokens = [self.tokenize(model, item) if isinstance(item, str) else item for item in inputs]
        return await self._encode_async(self._encoding(model, tokens, is_classifier=False))

    # Labels and scores

    def classify(self, model: str, inputs: Sequence[TextOrPair] | str) -> ClassifyResult:
        """Returns the probability of each of a classifier's labels for each text or pair of texts.

        A model of one label, or of labels that hold independently, gives each of them a probability of its own (a
        sigmoid); otherwise those of an input sum to 1 (a softmax).

        Raises:
            RequestError: if the request is not taken, e.g. a pair is longer than the model's sequence.
            ExecutionError: if it fails.
        """
        listed = [inputs] if isinstance(inputs, str) else inputs
        request = self._encoding(model, [self._sequence(model, item) for item in listed], is_classifier=True)
        return self._classified(model, self._encode(request))

    async def classify_async(self, model: str, inputs: Sequence[TextOrPair | list[int]]) -> ClassifyResult:
        """Returns the probabilities for texts, pairs or lists of tokens; as `classify`."""
        tokens = [item if isinstance(item, list) else self._sequence(model, item) for item in inputs]
        return self._classified(model, await self._encode_async(self._encoding(model, tokens, is_classifier=True)))

    def score(self, model: str, query: str, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Returns how well each text answers a query, f32 [texts] between 0 and 1; errors as for `classify`."""
        self._check_scores(model)
        return self.classify(model, [(query, text) for text in texts]).probabilities[:, 0]

    async def score_async(self, model: str, query: str, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Returns how well each text answers a query; as `score`."""
        self._check_scores(model)
        return (await self.classify_async(model, [(query, text) for text in texts])).probabilities[:, 0]

    # Requests

    def _tokens(self, model: str, prompt: Prompt) -> Sequence[int]:
        if isinstance(prompt, str):
            return self.tokenize(model, prompt)
        if prompt and isinstance(prompt[0], Mapping):
            return self.chat_prompt(model, prompt)  # type: ignore[arg-type]
        return prompt  # type: ignore[return-value]

    def _generation(self, model: str, prompt: Sequence[int], params: SamplingParams) -> tuple[Request, Answer]:
        served = self._served[self.resolve(model)]
        entry = served.entry
        if entry.kv is None:
            raise InvalidRequestError(f"model {model!r} is an encoder and generates no text", param="model")
        _check_tokens(served, prompt, param="prompt")
        room = entry.sequence - len(prompt)
        if room < 1 or (params.max_tokens or 0) > room:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and up to {params.max_tokens or 1} were asked for; model "
                f"{model!r} has a context of {entry.sequence}: shorten the prompt or lower max_tokens"
            )
        _check_sampling(params, entry.config.vocab_size, room)
        defaults = entry.sampling
        sampling = Sampling(
            temperature=defaults.temperature if params.temperature is None else params.temperature,
            top_p=defaults.top_p if params.top_p is None else params.top_p,
            seed=secrets.randbits(_SEED_BITS) if params.seed is None else params.seed,
            top_k=params.top_k,
            min_p=params.min_p,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            repetition_penalty=params.repetition_penalty,
            logit_bias=tuple(params.logit_bias.items()),
            min_tokens=params.min_tokens,
            ends=params.stop_token_ids,
            ignores_eos=params.ignore_eos,
            num_logprobs=params.logprobs,
            constraint=None if params.structure is None else served.grammars.constrain(params.structure),
        )
        work = GenerateWork(tuple(prompt), params.max_tokens or room, sampling)
        now = self._clock.now()
        answer = Answer(served.tokenizer, params.stop, len(prompt), now, min_tokens=params.min_tokens)
        return Request(next(self._ids), entry.name, work), answer

    def _encoding(self, model: str, inputs: Sequence[Sequence[int]], *, is_classifier: bool) -> Request:
        served = self._served[self.resolve(model)]
        entry = served.entry
        if entry.kv is not None:
            makes = "classifies nothing" if is_classifier else "makes no embeddings"
            raise InvalidRequestError(f"model {model!r} is a decoder and {makes}", param="model")
        if is_classifier != bool(_labels(entry)):
            what = "an embedder and classifies nothing" if is_classifier else "a classifier and makes no embeddings"
            raise InvalidRequestError(f"model {model!r} is {what}", param="model")
        if not inputs:
            verb = "classify" if is_classifier else "embed"
            raise InvalidRequestError(f"there is nothing to {verb}: the input is an empty list", param="input")
        for tokens in inputs:
            _check_tokens(served, tokens, param="input")
            if len(tokens) > entry.sequence:
                raise ContextLengthError(
                    f"an input has {len(tokens)} tokens, model {model!r} takes {entry.sequence}; split it",
                    param="input",
                )
        return Request(next(self._ids), entry.name, EmbedWork(tuple(tuple(tokens) for tokens in inputs)))

    def _sequence(self, model: str, item: TextOrPair) -> list[int]:
        return self.tokenize(model, item) if isinstance(item, str) else self.tokenize_pair(model, *item)

    def _check_scores(self, model: str) -> None:
        labels = _labels(self._served[self.resolve(model)].entry)
        if len(labels) > 1:
            raise InvalidRequestError(f"model {model!r} has {len(labels)} labels and no score; classify", param="model")

    def _encode(self, request: Request) -> EmbedResult:
        submitted_at = self._clock.now()
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._core.submit(request, outcomes.put)
        try:
            return self._vectors(request, outcomes.get(), submitted_at)
        finally:
            self._abandon(request)

    async def _encode_async(self, request: Request) -> EmbedResult:
        submitted_at = self._clock.now()
        outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self._core.submit(request, _into(outcomes))
        try:
            return self._vectors(request, await outcomes.get(), submitted_at)
        finally:
            self._abandon(request)

    def _classified(self, model: str, result: EmbedResult) -> ClassifyResult:
        config = self._served[self.resolve(model)].entry.config
        assert isinstance(config, EncoderConfig)
        are_independent = config.is_multi_label or len(config.labels) == 1
        return ClassifyResult(
            config.labels, probabilities(result.vectors, are_independent=are_independent), result.usage
        )

    def _abandon(self, request: Request) -> None:
        """Ends a request that nobody waits for any more, if it hasn't ended by itself."""
        if self._core.release(request.id):
            self.metrics.request_finished(request.model, "cancelled")

    def _piece(self, request: Request, answer: Answer, outcome: Outcome) -> Piece | None:
        _raise_failure(outcome)
        piece = answer.push(outcome.reply, self._clock.now(), outcome.logprobs)
        if piece is not None and piece.finish_reason is not None:
            self._check_constraint(request)
            self.metrics.request_finished(request.model, piece.finish_reason, piece.usage)
            self._core.release(request.id)
        return piece

    def _check_constraint(self, request: Request) -> None:
        """Raises ExecutionError if an answer has ended because what it must look like could not be followed."""
        constraint = request.work.sampling.constraint if isinstance(request.work, GenerateWork) else None
        if constraint is not None and constraint.failure:
            self.metrics.request_finished(request.model, "error")
            reason = constraint.failure.splitlines()[0]
            raise ExecutionError(f"the answer's structure could not be followed to its end: {reason}")

    def _vectors(self, request: Request, outcome: Outcome, submitted_at: float) -> EmbedResult:
        _raise_failure(outcome)
        work, timing = request.work, outcome.reply.timing
        assert isinstance(work, EmbedWork)
        assert timing is not None
        seconds = self._clock.now() - submitted_at
        usage = Usage(
            prompt_tokens=sum(len(tokens) for tokens in work.sequences),
            completion_tokens=0,
            queue_seconds=timing.started_at - timing.arrived_at,
            switch_seconds=timing.switch_seconds,
            time_to_first_token_seconds=seconds,
            total_seconds=seconds,
        )
        self.metrics.request_finished(request.model, "stop", usage)
        return EmbedResult(np.stack(outcome.vectors), usage)


def _into(outcomes: asyncio.Queue[Outcome]) -> Callable[[Outcome], None]:
    """Returns a sink that puts outcomes into a queue of the running event loop, from any thread."""
    loop = asyncio.get_running_loop()

    def sink(outcome: Outcome) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(outcomes.put_nowait, outcome)

    return sink


def _check_tokens(served: _Served, tokens: Sequence[int], *, param: str) -> None:
    vocab_size = served.entry.config.vocab_size
    if not tokens:
        raise InvalidRequestError(f"the {param} is empty; give at least one token", param=param)
    if not all(0 <= token < vocab_size for token in tokens):
        wrong = next(token for token in tokens if not 0 <= token < vocab_size)
        raise InvalidRequestError(f"token {wrong} is not in the vocabulary of {vocab_size} tokens", param=param)


def _labels(entry: ModelEntry) -> tuple[str, ...]:
    """Returns the labels of a classifier; other models have none."""
    return entry.config.labels if isinstance(entry.config, EncoderConfig) else ()


def _check_sampling(params: SamplingParams, vocab_size: int, room: int) -> None:
    for name, is_right, wanted in (
        ("max_tokens", params.max_tokens is None or params.max_tokens >= 1, "at least 1"),
        ("temperature", params.temperature is None or 0 <= params.temperature < math.inf, "0 or more"),
        ("top_p", params.top_p is None or 0 < params.top_p <= 1, "above 0 and at most 1"),
        ("seed", params.seed is None or 0 <= params.seed < 1 << _SEED_BITS, f"of at most {_SEED_BITS} bits"),
        ("top_k", params.top_k >= 0, "0, for all tokens, or more"),
        ("min_p", 0 <= params.min_p <= 1, "between 0 and 1"),
        ("frequency_penalty", -2 <= params.frequency_penalty <= 2, "between -2 and 2"),
        ("presence_penalty", -2 <= params.presence_penalty <= 2, "between -2 and 2"),
        ("repetition_penalty", 0.01 <= params.repetition_penalty <= 100, "between 0.01 and 100"),
        ("min_tokens", 0 <= params.min_tokens <= (params.max_tokens or room), "between 0 and max_tokens"),
        ("logprobs", params.logprobs is None or 0 <= params.logprobs <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
        ("stop_token_ids", all(0 <= one < vocab_size for one in params.stop_token_ids), f"below {vocab_size} each"),
        ("ignore_eos", not (params.ignore_eos and params.structure), "left out where the answer has a structure"),
        ("logit_bias", all(0 <= one < vocab_size for one in params.logit_bias), f"of tokens below {vocab_size}"),
        ("logit_bias", all(-100 <= one <= 100 for one in params.logit_bias.values()), "between -100 and 100 each"),
    ):
        if not is_right:
            raise InvalidRequestError(f"{name} is {getattr(params, name)}; it must be {wanted}", param=name)


def _raise_failure(outcome: Outcome) -> None:
    if outcome.reply.failure == "timeout":
        raise RequestTimeoutError(outcome.reply.message)
    if outcome.reply.failure is not None:
        raise ExecutionError(outcome.reply.message)


def _gather(pieces: Sequence[Piece]) -> Completion:
    last = pieces[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    tokens = tuple(token for piece in pieces for token in piece.token_ids)
    logprobs = tuple(one for piece in pieces for one in piece.logprobs)
    return Completion("".join(piece.text for piece in pieces), tokens, last.finish_reason, last.usage, logprobs)

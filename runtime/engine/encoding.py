"""Vectors, labels and scores: what a bundle's encoders say of lists of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing, closing

import numpy as np

from ...errors import ContextLengthError, InvalidRequestError
from ...models.config import EncoderConfig
from ..core import Outcome
from ..events import EmbedWork, Request
from ..probabilities import probabilities
from ..request import ClassifyResult, EmbedResult, Usage
from .exchange import Exchange
from .served import Served

__all__ = ["Encoding", "check_scores"]


class Encoding:
    """Runs the encoders of a bundle.

    Args:
        exchange: With the engine.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def embed(self, served: Served, inputs: Sequence[Sequence[int]]) -> EmbedResult:
        """Returns one vector for each list of tokens.

        Raises:
            RequestError: if the request is not taken.
            ExecutionError: if it fails.
        """
        return self._encode(self._request(served, inputs, is_classifier=False))

    async def embed_async(self, served: Served, inputs: Sequence[Sequence[int]]) -> EmbedResult:
        """Returns one vector for each list of tokens; as `embed`."""
        return await self._encode_async(self._request(served, inputs, is_classifier=False))

    def classify(self, served: Served, inputs: Sequence[Sequence[int]]) -> ClassifyResult:
        """Returns the probability of each label for each list of tokens; errors as for `embed`."""
        return _classified(served, self._encode(self._request(served, inputs, is_classifier=True)))

    async def classify_async(self, served: Served, inputs: Sequence[Sequence[int]]) -> ClassifyResult:
        """Returns the probability of each label for each list of tokens; as `classify`."""
        return _classified(served, await self._encode_async(self._request(served, inputs, is_classifier=True)))

    def _request(self, served: Served, inputs: Sequence[Sequence[int]], *, is_classifier: bool) -> Request:
        entry = served.entry
        if entry.kv is not None:
            makes = "classifies nothing" if is_classifier else "makes no embeddings"
            raise InvalidRequestError(f"model {entry.name!r} is a decoder and {makes}", param="model")
        if is_classifier != bool(served.labels):
            what = "an embedder and classifies nothing" if is_classifier else "a classifier and makes no embeddings"
            raise InvalidRequestError(f"model {entry.name!r} is {what}", param="model")
        if not inputs:
            verb = "classify" if is_classifier else "embed"
            raise InvalidRequestError(f"there is nothing to {verb}: the input is an empty list", param="input")
        for tokens in inputs:
            served.check_tokens(tokens, param="input")
            if len(tokens) > entry.sequence:
                raise ContextLengthError(
                    f"an input has {len(tokens)} tokens, model {entry.name!r} takes {entry.sequence}; split it",
                    param="input",
                )
        return self._exchange.request(entry.name, EmbedWork(tuple(tuple(tokens) for tokens in inputs)))

    def _encode(self, request: Request) -> EmbedResult:
        submitted_at = self._exchange.now()
        with closing(self._exchange.outcomes(request)) as outcomes:
            return self._vectors(request, next(outcomes), submitted_at)

    async def _encode_async(self, request: Request) -> EmbedResult:
        submitted_at = self._exchange.now()
        async with aclosing(self._exchange.outcomes_async(request)) as outcomes:
            return self._vectors(request, await anext(outcomes), submitted_at)

    def _vectors(self, request: Request, outcome: Outcome, submitted_at: float) -> EmbedResult:
        work, timing = request.work, outcome.reply.timing
        assert isinstance(work, EmbedWork)
        assert timing is not None
        seconds = self._exchange.now() - submitted_at
        usage = Usage(
            prompt_tokens=sum(len(tokens) for tokens in work.sequences),
            completion_tokens=0,
            queue_seconds=timing.started_at - timing.arrived_at,
            switch_seconds=timing.switch_seconds,
            time_to_first_token_seconds=seconds,
            total_seconds=seconds,
            energy=outcome.energy,
        )
        self._exchange.metrics.request_finished(request.model, "stop", usage)
        return EmbedResult(np.stack(outcome.vectors), usage)


def check_scores(served: Served) -> None:
    """Raises InvalidRequestError if a model has several labels and so no score."""
    if len(served.labels) > 1:
        name = served.entry.name
        raise InvalidRequestError(
            f"model {name!r} has {len(served.labels)} labels and no score; classify", param="model"
        )


def _classified(served: Served, result: EmbedResult) -> ClassifyResult:
    config = served.entry.config
    assert isinstance(config, EncoderConfig)
    are_independent = config.is_multi_label or len(config.labels) == 1
    return ClassifyResult(config.labels, probabilities(result.vectors, are_independent=are_independent), result.usage)

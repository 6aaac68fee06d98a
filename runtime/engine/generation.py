"""Answers: from a prompt of tokens and parameters to pieces of text."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, closing

from ...errors import ContextLengthError, ExecutionError, InvalidRequestError
from ..answer import Answer
from ..core import Outcome
from ..events import GenerateWork, Request, Sampling
from ..request import MAX_LOGPROBS, Completion, Piece, SamplingParams
from ..tool_calls import whole_calls
from .exchange import Exchange
from .served import Served

__all__ = ["Generation", "gather"]

_SEED_BITS = 63


class Generation:
    """Generates the answers of a bundle's decoders.

    Args:
        exchange: With the engine.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def pieces(self, served: Served, prompt: Sequence[int], params: SamplingParams) -> Iterator[Piece]:
        """Yields an answer piece by piece, the last one with finish reason and usage.

        Raises:
            RequestError: if the request is not taken.
            ExecutionError: if it fails.
        """
        request, answer = self._request(served, prompt, params)
        with closing(self._exchange.outcomes(request)) as outcomes:
            for outcome in outcomes:
                piece = self._piece(request, answer, outcome)
                if piece is not None:
                    yield piece
                    if piece.finish_reason is not None:
                        return

    async def pieces_async(
        self, served: Served, prompt: Sequence[int], params: SamplingParams
    ) -> AsyncGenerator[Piece, None]:
        """Yields an answer piece by piece; as `pieces`."""
        if params.structure is None and params.tools is None:
            request, answer = self._request(served, prompt, params)
        else:  # grammars take their time
            request, answer = await asyncio.to_thread(self._request, served, prompt, params)
        async with aclosing(self._exchange.outcomes_async(request)) as outcomes:
            async for outcome in outcomes:
                piece = self._piece(request, answer, outcome)
                if piece is not None:
                    yield piece
                    if piece.finish_reason is not None:
                        return

    def _request(self, served: Served, prompt: Sequence[int], params: SamplingParams) -> tuple[Request, Answer]:
        entry = served.entry
        if entry.kv is None:
            raise InvalidRequestError(f"model {entry.name!r} is an encoder and generates no text", param="model")
        served.check_tokens(prompt, param="prompt")
        room = entry.sequence - len(prompt)
        if room < 1 or (params.max_tokens or 0) > room:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and up to {params.max_tokens or 1} were asked for; model "
                f"{entry.name!r} has a context of {entry.sequence}: shorten the prompt or lower max_tokens"
            )
        _check_sampling(params, entry.config.vocab_size, room)
        work = GenerateWork(tuple(prompt), params.max_tokens or room, _sampling(served, params), salt=params.cache_salt)
        answer = served.read_answer(prompt, params, self._exchange.now())
        request = self._exchange.request(
            entry.name,
            work,
            priority=params.priority,
            client=params.client,
            deadline_seconds=params.deadline_seconds,
        )
        return request, answer

    def _piece(self, request: Request, answer: Answer, outcome: Outcome) -> Piece | None:
        piece = answer.push(outcome.reply, self._exchange.now(), outcome.logprobs, outcome.energy)
        if piece is not None and piece.finish_reason is not None:
            self._check_constraint(request)
            self._exchange.metrics.request_finished(request.model, piece.finish_reason, piece.usage)
            self._exchange.end(request)
        return piece

    def _check_constraint(self, request: Request) -> None:
        """Raises ExecutionError if an answer has ended because what it must look like could not be followed."""
        constraint = request.work.sampling.constraint if isinstance(request.work, GenerateWork) else None
        if constraint is not None and constraint.failure:
            self._exchange.metrics.request_finished(request.model, "error")
            reason = constraint.failure.splitlines()[0]
            raise ExecutionError(f"the answer's structure could not be followed to its end: {reason}")


def gather(pieces: Sequence[Piece]) -> Completion:
    """Returns the whole answer that all of its pieces make."""
    last = pieces[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    tokens = tuple(token for piece in pieces for token in piece.token_ids)
    logprobs = tuple(one for piece in pieces for one in piece.logprobs)
    calls = whole_calls(delta for piece in pieces for delta in piece.tool_calls)
    return Completion("".join(piece.text for piece in pieces), tokens, last.finish_reason, last.usage, logprobs, calls)


def _sampling(served: Served, params: SamplingParams) -> Sampling:
    defaults = served.entry.sampling
    return Sampling(
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
        constraint=served.constrain(params),
        is_reproducible=params.seed is not None,
    )


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
        ("ignore_eos", not (params.ignore_eos and params.tools), "left out where tools may be called"),
        ("logit_bias", all(0 <= one < vocab_size for one in params.logit_bias), f"of tokens below {vocab_size}"),
        ("logit_bias", all(-100 <= one <= 100 for one in params.logit_bias.values()), "between -100 and 100 each"),
    ):
        if not is_right:
            raise InvalidRequestError(f"{name} is {getattr(params, name)}; it must be {wanted}", param=name)

"""Answers to one or several prompts, piece by piece, for chat and text completions alike.

Each prompt is answered `n` times; the answers of the first prompt come first in their numbering.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import Request

from ...errors import ContextLengthError
from ..request import Energy, FinishReason, Piece, SamplingParams, TokenLogprobs, ToolCall, ToolCallDelta, Usage
from ..tool_calls import whole_calls
from .engine import Engine

__all__ = ["Answer", "Answering", "answer", "collect", "of_key", "total_usage"]

Answering = AsyncGenerator[tuple[int, Piece], None]  # (index of the answer, piece of it)


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] = ()  # of each token, where they were asked for
    tool_calls: tuple[ToolCall, ...] = ()


async def answer(
    engine: Engine,
    model: str,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    num_choices: int = 1,
    param: str,
) -> Answering:
    """Yields the pieces of all answers as they come; closing it stops them all.

    Args:
        engine: What answers.
        model: Canonical name.
        prompts: Tokens of each prompt; they run together.
        params: The same for every prompt; each of a prompt's answers has a seed of its own, made from this one's.
        num_choices: Answers to each prompt.
        param: The parameter that holds the prompts, to be named if one is too long.

    Raises:
        RequestError: on the first `anext`, if the engine does not take a request.
    """
    variants = [dataclasses.replace(params, seed=_seed(params.seed, choice)) for choice in range(num_choices)]
    streams = [engine.generate_async(model, prompt, variant) for prompt in prompts for variant in variants]
    pending = {_next(stream): index for index, stream in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = pending.pop(task)
                piece = _result(task, param)
                if piece is not None:
                    pending[_next(streams[index])] = index
                    yield index, piece
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


def _seed(seed: int | None, choice: int) -> int | None:
    """Returns the seed of one of a prompt's answers; the first has the request's own, whatever `n` is."""
    if seed is None or choice == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{choice}".encode()).digest()[:8], "big") >> 1


def _next(stream: AsyncGenerator[Piece, None]) -> asyncio.Task[Piece]:
    async def step() -> Piece:
        return await anext(stream)

    return asyncio.create_task(step())


def _result(task: asyncio.Task[Piece], param: str) -> Piece | None:
    """Returns a piece, or None at the end of its stream."""
    try:
        return task.result()
    except StopAsyncIteration:
        return None
    except ContextLengthError as error:
        error.param = error.param or param
        raise


async def collect(answering: Answering, num_answers: int) -> list[Answer]:
    """Returns the whole answers in their order."""
    texts: list[list[str]] = [[] for _ in range(num_answers)]
    logprobs: list[list[TokenLogprobs]] = [[] for _ in range(num_answers)]
    calls: list[list[ToolCallDelta]] = [[] for _ in range(num_answers)]
    ends: dict[int, tuple[FinishReason, Usage]] = {}
    async with aclosing(answering):
        async for index, piece in answering:
            texts[index].append(piece.text)
            logprobs[index].extend(piece.logprobs)
            calls[index].extend(piece.tool_calls)
            if piece.finish_reason is not None and piece.usage is not None:
                ends[index] = (piece.finish_reason, piece.usage)
    return [
        Answer("".join(text), *ends[index], tuple(logprobs[index]), whole_calls(calls[index]))
        for index, text in enumerate(texts)
    ]


def of_key(params: SamplingParams, request: Request) -> SamplingParams:
    """Returns parameters under which clients with different API keys share neither a cache nor a turn."""
    key = getattr(request.state, "key_id", None)
    if key is None:
        return params
    return dataclasses.replace(params, client=f"{key}/{params.client}", cache_salt=f"{key}/{params.cache_salt}")


def _cached_tokens(cached: Sequence[int], num_choices: int) -> int:
    """Returns how many tokens of the prompts were in the cache: of several choices of one, in that of the first."""
    return min(cached) if len(cached) == num_choices else sum(cached) // num_choices


def total_usage(usages: Sequence[Usage], num_choices: int = 1) -> Usage:
    """Returns what answers that ran together cost: tokens and energy are summed, times are those of the slowest.

    Args:
        usages: Of all answers, in any order.
        num_choices: Answers to each prompt, whose tokens are counted once.
    """
    energies = [usage.energy for usage in usages if usage.energy is not None]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages) // num_choices,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        queue_seconds=max(usage.queue_seconds for usage in usages),
        switch_seconds=max(usage.switch_seconds for usage in usages),
        time_to_first_token_seconds=max(usage.time_to_first_token_seconds for usage in usages),
        total_seconds=max(usage.total_seconds for usage in usages),
        energy=Energy(sum(one.joules for one in energies), energies[0].source) if energies else None,
        accepted_tokens=sum(usage.accepted_tokens for usage in usages),
        rejected_tokens=sum(usage.rejected_tokens for usage in usages),
        cached_tokens=_cached_tokens([usage.cached_tokens for usage in usages], num_choices),
    )

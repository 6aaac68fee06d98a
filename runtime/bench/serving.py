"""What a served bundle takes beside its programs: the host's part of a step, of a token and of a request.

Answers of several numbers of clients at once are asked of a server, each model alone. A decode step's period is the
time from token to token of the answer that began last, for no prompt interrupts it. What that is above the program's
own time is `step_seconds` and, for each answer under way, `sequence_seconds`: the line that fits best. What a client
waits for a first token beside the steps for it is `request_seconds`. Client and server share the machine, as in a
benchmark: the client's part of a token is in these numbers.

A prompt's program takes longer after a rest than over and over: what prompts took that one step computed, every other
one after a rest, takes the place of what the program alone took.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import httpx

from ...compiler.bundle.manifest import ModelEntry
from ...compiler.target import ProgramSeconds, Serving
from ...errors import ConfigurationError
from ..model_queue import ModelQueue
from .client import Endpoint, Reply, ask, connect
from .programs import ProgramTimes
from .prompts import random_prompt

__all__ = ["measure_serving"]

_AT_ONCE = (1, 2, 3, 4, 6, 8, 12, 16)
_PROMPT_WORDS = 8
_MOST_TOKENS = 17  # of an answer: long ones, for as long without a rest, take more time a token
_NUM_RUNS = 9
_NUM_FIRST_TOKENS = 10  # requests that the median is of
_REST_SECONDS = 0.2  # before answers, and before every other first token
_FULL = 2 / 3  # of a step, that a prompt is, about: words are not all as many tokens

_Prompts: TypeAlias = dict[str, list[tuple[float, float]]]  # by model/configuration: share of its context, seconds


def measure_serving(
    url: str,
    models: Sequence[ModelEntry],
    times: ProgramTimes,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Serving:
    """Measures a server that nobody else asks anything.

    Args:
        url: Of a server of the bundle.
        models: Of the bundle; one at least generates text.
        times: What its programs take.
        progress: Told how many measurements of how many are done.

    Raises:
        ConfigurationError: if the server fails to answer.
    """
    decoders = [entry for entry in models if entry.kv is not None]
    return asyncio.run(_measure(url, decoders, times, progress or (lambda done, total: None)))


async def _measure(
    url: str, decoders: Sequence[ModelEntry], times: ProgramTimes, progress: Callable[[int, int], None]
) -> Serving:
    endpoint = Endpoint("completions", ignores_eos=True)
    counts = {entry.name: [count for count in _AT_ONCE if count <= entry.batch] for entry in decoders}
    sizes = {entry.name: _prompt_sizes(entry) for entry in decoders}
    total = (1 + _NUM_RUNS) * sum(map(len, counts.values())) + sum(map(len, sizes.values()))
    done = itertools.count(1)
    points: list[tuple[int, float]] = []
    firsts: list[float] = []
    prompts: _Prompts = defaultdict(list)
    async with connect(url, endpoint, None) as http:
        for entry in decoders:
            found: dict[int, list[float]] = {count: [] for count in counts[entry.name]}
            for _ in range(1 + _NUM_RUNS):  # in turns, so that a disturbance meets all alike
                for count, seconds in found.items():
                    seconds.append(await _beside_decode(http, endpoint, entry, count, times.programs))
                    progress(next(done), total)
            # The first run of a program takes longer.
            points += [(count, statistics.median(seconds[1:])) for count, seconds in found.items()]
            words = await _words_a_token(http, endpoint, entry)
            for num_tokens in sizes[entry.name]:
                num_words = max(1, int(words * num_tokens))
                firsts += await _first_tokens(http, endpoint, entry, num_words, prompts)
                progress(next(done), total)
    step_seconds, sequence_seconds = _line(points)
    served = {
        name: _as_served(times.programs[name], found, step_seconds + sequence_seconds)
        for name, found in prompts.items()
    }
    return Serving(
        step_seconds=step_seconds,
        sequence_seconds=sequence_seconds,
        request_seconds=max(0.0, statistics.median(firsts)),
        pool_bytes_per_s=times.pool_bytes_per_s,
        save_seconds=times.save_seconds,
        load_seconds=times.load_seconds,
        evict_seconds=times.evict_seconds,
        reading_seconds=times.reading_seconds,
        programs={**times.programs, **served},
    )


def _prompt_sizes(entry: ModelEntry) -> list[int]:
    """Returns how many tokens to ask with so that each of a model's prefill steps is run alone."""
    assert entry.kv is not None, entry.name
    room = min(entry.sequence, entry.kv.num_blocks * entry.kv.block_tokens)
    steps = {program.configuration.new_tokens for program in entry.programs if program.configuration.phase == "prefill"}
    return sorted({max(1, int(_FULL * min(new_tokens, room))) for new_tokens in steps})


async def _words_a_token(http: httpx.AsyncClient, endpoint: Endpoint, entry: ModelEntry) -> float:
    """Returns how many words of a prompt a model takes as one token, 1 at most."""
    reply = await _ask(http, endpoint, entry, 1)
    return min(1.0, _PROMPT_WORDS / (reply.input_tokens or _PROMPT_WORDS))


async def _first_tokens(
    http: httpx.AsyncClient, endpoint: Endpoint, entry: ModelEntry, num_words: int, prompts: _Prompts
) -> list[float]:
    """Returns what first tokens of a hot model took beside the steps for them.

    Args:
        http: To ask with, as is `endpoint`.
        endpoint: Likewise.
        entry: The model.
        num_words: Of each prompt.
        prompts: Where to note what the step took of a prompt that was computed in one.
    """
    queue = ModelQueue.of(entry, kv_bytes_per_s=None)
    seconds: list[float] = []
    for number in range(_NUM_FIRST_TOKENS):
        await asyncio.sleep(number % 2 * _REST_SECONDS)
        reply = await _ask(http, endpoint, entry, 1, num_words=num_words)
        if reply.ttft_seconds is None or reply.computing_seconds is None or reply.input_tokens is None:
            raise ConfigurationError("the server does not say when it began to compute an answer")
        seconds.append(reply.ttft_seconds - reply.computing_seconds)
        step = queue.next_chunk(reply.input_tokens)
        if step.new_tokens >= reply.input_tokens:
            share = reply.input_tokens / step.context
            prompts[f"{entry.name}/{step.id}"].append((share, reply.computing_seconds))
    return seconds


def _as_served(program: ProgramSeconds, found: Sequence[tuple[float, float]], beside: float) -> ProgramSeconds:
    """Returns what a program takes such that prompts take what was found.

    Args:
        program: What it takes by itself, over and over; it does not take less.
        found: For each prompt its share of the longest context, and the seconds to its first token.
        beside: Seconds of it that are not the program's.

    >>> _as_served(ProgramSeconds(0.5, context_seconds=1.0), [(0.5, 2.0), (0.5, 9.0), (0.25, 3.0)], 0.5)
    ProgramSeconds(seconds=2.25, context_seconds=1.0)
    """
    seconds = statistics.median(whole - share * program.context_seconds for share, whole in found)
    return replace(program, seconds=max(program.seconds, seconds - beside))


async def _beside_decode(
    http: httpx.AsyncClient, endpoint: Endpoint, entry: ModelEntry, count: int, programs: Mapping[str, ProgramSeconds]
) -> float:
    """Returns what a decode step with so many answers under way takes above its program."""
    assert entry.kv is not None, entry.name
    room = min(entry.sequence, entry.kv.num_blocks // count * entry.kv.block_tokens)
    num_tokens = max(2, min(_MOST_TOKENS, room // 2))
    await asyncio.sleep(_REST_SECONDS)
    asked = (_ask(http, endpoint, entry, num_tokens) for _ in range(count))
    replies = await asyncio.gather(*asked)
    last = max(replies, key=lambda reply: reply.ttft_seconds or 0.0)
    queue = ModelQueue.of(entry, kv_bytes_per_s=None)
    shapes = queue.smallest("decode", batch=count) or queue.longest("decode")
    program = programs[f"{entry.name}/{shapes.id}"]
    context = min((last.input_tokens or 0) + num_tokens / 2, shapes.context)
    assert last.tpot_seconds is not None, last
    return last.tpot_seconds - program.seconds - program.context_seconds * context / shapes.context


async def _ask(
    http: httpx.AsyncClient, endpoint: Endpoint, entry: ModelEntry, num_tokens: int, *, num_words: int = _PROMPT_WORDS
) -> Reply:
    prompt = random_prompt(num_words, random.Random())
    reply = await ask(http, endpoint, entry.name, prompt, num_tokens)
    if reply.failure is not None:
        raise ConfigurationError(f"the server failed to answer for model {entry.name!r}: {reply.failure}")
    return reply


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Returns height at 0 and slope, neither below 0, of the line that comes closest to some points (x, y).

    >>> _line([(1, 3.0), (2, 4.0), (3, 5.0)])
    (2.0, 1.0)
    """
    xs, ys = zip(*points, strict=True)
    if len(set(xs)) > 1:
        slope, height = statistics.linear_regression(xs, ys)
        if slope < 0:
            return max(0.0, statistics.fmean(ys)), 0.0
        if height >= 0:
            return height, slope
    through_origin = sum(x * y for x, y in points) / sum(x * x for x in xs)
    return 0.0, max(0.0, through_origin)

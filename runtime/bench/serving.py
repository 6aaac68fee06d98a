"""What a served bundle takes beside its programs: the host's part of a step, of a token and of a request.

Answers of several numbers of clients at once are asked of a server, each model alone. A decode step's period is the
time from token to token of the answer that began last, for no prompt interrupts it. What that is above the program's
own time is `step_seconds` and, for each answer under way, `sequence_seconds`: the line that fits best. What a client
waits for a first token beside the steps for it is `request_seconds`. Client and server share the machine, as in a
benchmark: the client's part of a token is in these numbers.

A prompt's program takes longer among requests than over and over, and longer still after a rest of some tenths of
a second, until the machine has worked for as long. What prompts took that one step computed takes the place of what the
program alone took: the mean of those at once after an answer, and what the mean of those after a rest is above it, both
of all models that have the program. Models and sizes are asked in turns, so that a disturbance meets all alike. Means,
without what took more than twice the median: some percent above medians, and what a request waits for is a sum.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import httpx

from ...compiler.bundle.manifest import Manifest, ModelEntry
from ...compiler.target import ProgramSeconds, Serving
from ...errors import ConfigurationError
from ..model_queue import ModelQueue
from .client import Endpoint, Reply, ask, connect
from .measures import usual_mean
from .programs import ProgramKey, ProgramTimes, key_of_program
from .prompts import random_prompt

__all__ = ["measure_serving"]

_AT_ONCE = (1, 2, 3, 4, 6, 8, 12, 16)
_PROMPT_WORDS = 8
_NUM_PROMPTS = 8  # that tell how many tokens a word is to a model
_MOST_TOKENS = 17  # of an answer: long ones, for as long without a rest, take more time a token
_NUM_ROUNDS = 3
_NUM_RUNS = 3  # of a model in a round
_REST_SECONDS = 0.3  # before answers, and before every other first token
_BUSY_TOKENS = 8  # of an answer after which, at once, the other first tokens are asked for
_FULL = 2 / 3  # of a step, that a prompt is, about: words are not all as many tokens


@dataclass
class _Prompts:
    """What prompts took that one step of a program computed: shares of its context, seconds to the first token."""

    rested: list[tuple[float, float]] = field(default_factory=list)
    at_once: list[tuple[float, float]] = field(default_factory=list)


def measure_serving(
    url: str,
    manifest: Manifest,
    times: ProgramTimes,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Serving:
    """Measures a server that nobody else asks anything.

    Args:
        url: Of a server of the bundle.
        manifest: Of the bundle; one of its models at least generates text.
        times: What its programs take.
        progress: Told how many measurements of how many are done.

    Raises:
        ConfigurationError: if the server fails to answer.
    """
    return asyncio.run(_measure(url, manifest, times, progress or (lambda done, total: None)))


async def _measure(url: str, manifest: Manifest, times: ProgramTimes, progress: Callable[[int, int], None]) -> Serving:
    endpoint = Endpoint("completions", ignores_eos=True)
    async with connect(url, endpoint, None) as http:
        measuring = _Measuring(http, endpoint, manifest, times.programs)
        decoders = [entry for entry in manifest.models if entry.kv is not None]
        runs = [(entry, False) for entry in decoders]  # the first run of a program takes longer
        runs += [(entry, True) for _ in range(_NUM_ROUNDS) for entry in decoders for _ in range(_NUM_RUNS)]
        for done, (entry, counts) in enumerate(runs, 1):
            await measuring.run(entry, counts=counts)
            progress(done, len(runs))
    step_seconds, sequence_seconds = _line(measuring.beside_decode())
    return Serving(
        step_seconds=step_seconds,
        sequence_seconds=sequence_seconds,
        request_seconds=usual_mean(measuring.beside_first_tokens),
        pool_bytes_per_s=times.pool_bytes_per_s,
        save_seconds=times.save_seconds,
        load_seconds=times.load_seconds,
        evict_seconds=times.evict_seconds,
        reading_seconds=times.reading_seconds,
        programs={**times.programs, **dict(measuring.prompts_as_served(step_seconds + sequence_seconds))},
    )


class _Measuring:
    """Asks a server, and keeps what answers took.

    Args:
        http: To ask with.
        endpoint: Where.
        manifest: Of the bundle that is served.
        programs: What its programs take by themselves, by model/configuration.
    """

    def __init__(
        self, http: httpx.AsyncClient, endpoint: Endpoint, manifest: Manifest, programs: Mapping[str, ProgramSeconds]
    ) -> None:
        self._http = http
        self._endpoint = endpoint
        self._manifest = manifest
        self._programs = programs
        self._queues = {entry.name: ModelQueue.of(entry, kv_bytes_per_s=None) for entry in manifest.models}
        self._generator = random.Random(0)
        self._words: dict[str, float] = {}  # of a prompt, that a model takes as one token
        # By model and answers at once: seconds of a decode step as served, and of its program.
        self._decode: defaultdict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        self._prompts: defaultdict[ProgramKey, _Prompts] = defaultdict(_Prompts)
        self.beside_first_tokens: list[float] = []  # seconds

    async def run(self, entry: ModelEntry, *, counts: bool) -> None:
        """Asks a model for one answer or several of each kind; `counts` if what they take is to be kept."""
        if entry.name not in self._words:
            self._words[entry.name] = await self._words_a_token(entry)
        for at_once in _AT_ONCE:
            if at_once <= entry.batch:
                found = await self._decode_step(entry, at_once)
                if counts:
                    self._decode[entry.name, at_once].append(found)
        for num_tokens in _prompt_sizes(entry):
            for is_rested in (True, False):
                await self._first_token(entry, num_tokens, is_rested=is_rested, counts=counts)

    def beside_decode(self) -> list[tuple[int, float]]:
        """Returns numbers of answers at once, and what a decode step takes above its program: means of each model."""
        found: list[tuple[int, float]] = []
        for (_, at_once), runs in self._decode.items():
            served, alone = zip(*runs, strict=True)
            found.append((at_once, usual_mean(served) - statistics.fmean(alone)))
        return found

    def prompts_as_served(self, beside: float) -> Iterator[tuple[str, ProgramSeconds]]:
        """Yields programs' names, model/configuration, and what they take such that prompts take what was found.

        Args:
            beside: Seconds of a prompt's step that are not the program's.
        """
        for entry in self._manifest.models:
            for program in entry.programs:
                found = self._prompts.get(key_of_program(self._manifest, program))
                if found is not None:
                    name = f"{entry.name}/{program.configuration.id}"
                    yield name, _as_served(self._programs[name], found, beside)

    async def _words_a_token(self, entry: ModelEntry) -> float:
        """Returns how much of a word a token is, as several prompts say: of few words it may be half or double."""
        replies = [await self._ask(entry, 1) for _ in range(_NUM_PROMPTS)]
        num_tokens = sum(reply.input_tokens or _PROMPT_WORDS for reply in replies)
        return min(1.0, _NUM_PROMPTS * _PROMPT_WORDS / num_tokens)

    async def _first_token(self, entry: ModelEntry, num_tokens: int, *, is_rested: bool, counts: bool) -> None:
        """Asks for the first token of a prompt of about so many."""
        if is_rested:
            await asyncio.sleep(_REST_SECONDS)
        else:
            await self._ask(entry, self._num_tokens(entry, 1, _BUSY_TOKENS))
        reply = await self._ask(entry, 1, num_words=max(1, int(self._words[entry.name] * num_tokens)))
        if reply.ttft_seconds is None or reply.computing_seconds is None or reply.input_tokens is None:
            raise ConfigurationError("the server does not say when it began to compute an answer")
        if not counts:
            return
        self.beside_first_tokens.append(max(0.0, reply.ttft_seconds - reply.computing_seconds))
        step = self._queues[entry.name].next_chunk(reply.input_tokens)
        if step.new_tokens >= reply.input_tokens:
            (program,) = (program for program in entry.programs if program.configuration == step)
            prompts = self._prompts[key_of_program(self._manifest, program)]
            found = prompts.rested if is_rested else prompts.at_once
            found.append((reply.input_tokens / step.context, reply.computing_seconds))

    async def _decode_step(self, entry: ModelEntry, count: int) -> tuple[float, float]:
        """Returns what a decode step takes with so many answers under way, and what its program takes alone."""
        num_tokens = self._num_tokens(entry, count, _MOST_TOKENS)
        await asyncio.sleep(_REST_SECONDS)
        replies = await asyncio.gather(*(self._ask(entry, num_tokens) for _ in range(count)))
        last = max(replies, key=lambda reply: reply.ttft_seconds or 0.0)
        queue = self._queues[entry.name]
        shapes = queue.smallest("decode", batch=count) or queue.longest("decode")
        program = self._programs[f"{entry.name}/{shapes.id}"]
        context = min((last.input_tokens or 0) + num_tokens / 2, shapes.context)
        assert last.tpot_seconds is not None, last
        return last.tpot_seconds, program.seconds + program.context_seconds * context / shapes.context

    @staticmethod
    def _num_tokens(entry: ModelEntry, count: int, most: int) -> int:
        """Returns how long answers can be of which so many are under way, 2 at least and so many at most."""
        assert entry.kv is not None, entry.name
        room = min(entry.sequence, entry.kv.num_blocks // count * entry.kv.block_tokens)
        return max(2, min(most, room // 2))

    async def _ask(self, entry: ModelEntry, num_tokens: int, *, num_words: int = _PROMPT_WORDS) -> Reply:
        prompt = random_prompt(num_words, self._generator)
        reply = await ask(self._http, self._endpoint, entry.name, prompt, num_tokens)
        if reply.failure is not None:
            raise ConfigurationError(f"the server failed to answer for model {entry.name!r}: {reply.failure}")
        return reply


def _prompt_sizes(entry: ModelEntry) -> list[int]:
    """Returns how many tokens to ask with so that each of a model's prefill steps is run alone."""
    assert entry.kv is not None, entry.name
    room = min(entry.sequence, entry.kv.num_blocks * entry.kv.block_tokens)
    steps = {program.configuration.new_tokens for program in entry.programs if program.configuration.phase == "prefill"}
    return sorted({max(1, int(_FULL * min(new_tokens, room))) for new_tokens in steps})


def _as_served(program: ProgramSeconds, prompts: _Prompts, beside: float) -> ProgramSeconds:
    """Returns what a program takes such that prompts take what was found.

    Args:
        program: What it takes by itself, over and over; it does not take less.
        prompts: What was found.
        beside: Seconds of it that are not the program's.

    >>> found = _Prompts(rested=[(0.5, 3.0), (0.5, 9.0), (0.25, 2.75)], at_once=[(0.5, 2.0)])
    >>> _as_served(ProgramSeconds(0.5, context_seconds=1.0), found, 0.5)
    ProgramSeconds(seconds=1.0, context_seconds=1.0, rested_seconds=1.0)
    """

    def own(found: Sequence[tuple[float, float]]) -> float:
        return usual_mean([whole - share * program.context_seconds for share, whole in found]) - beside

    seconds = max(program.seconds, own(prompts.at_once or prompts.rested))
    return replace(program, seconds=seconds, rested_seconds=max(0.0, own(prompts.rested or prompts.at_once) - seconds))


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

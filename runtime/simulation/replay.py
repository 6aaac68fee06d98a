"""A trace replayed: arrivals go to the scheduler that serves, and what comes of each is kept as a client would see it.

A request comes to the scheduler `request_seconds` of the host after it was sent. Before the trace begins, all that the
scheduler does by itself has been done: pinned models are hot, the others warm as far as there is room; then models may
be asked once each, as a benchmark's warm-up does.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ...compiler.bundle.manifest import ModelEntry
from ..bench.arrivals import Arrival as Asked
from ..bench.client import Reply as Answer
from ..bench.load import Outcome, Run
from ..events import (
    Action,
    Arrival,
    Decode,
    Embed,
    EmbedWork,
    Event,
    GenerateWork,
    LoadBlocks,
    Prefill,
    Reply,
    Request,
    Routed,
    Sampling,
    SaveBlocks,
    Step,
    StepDone,
    StepFailed,
    Transfer,
    TransferCancelled,
    Verify,
)
from ..request import Residency
from ..scheduler import Scheduler
from ..simulator import SimExecutor, Simulation
from .costs import serving_of
from .machine import Machine

__all__ = ["Observer", "Replayed", "replay"]

Observer = Callable[[float, Event | Action], None]

_TOKEN = 1  # that is always drawn
_GREEDY = Sampling(0.0, 1.0, 0, ignores_eos=True)  # answers are as long as the trace says
_FIRST_BLOCK = 2  # tokens of a piece of a prompt; below are those of prompts that have nothing in common
_WARM_UP = (1, 2)  # tokens in and out
_DECODE_STEPS = 64  # that are one event at most


@dataclass
class Replayed:
    """What a trace came to, in simulated time."""

    run: Run  # as a benchmark has it
    begin_seconds: float = 0.0  # when the trace began
    seconds: float = 0.0  # from then until nothing was under way any more
    wall_seconds: float = 0.0  # that the simulation took
    queue_seconds: list[float] = field(default_factory=list[float])  # of each request that began
    switch_seconds: list[float] = field(default_factory=list[float])  # likewise, of them while its model was not hot
    arrivals: Counter[Residency] = field(default_factory=Counter[Residency])  # by where the model was
    transfers: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])  # by source, destination
    moved_bytes: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])  # of the fullest device
    moved_kv_bytes: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])  # likewise, of KV blocks
    prompt_tokens: int = 0  # of requests that began to generate
    cached_tokens: int = 0  # of them that were in the KV cache already
    num_steps: Counter[str] = field(default_factory=Counter[str])  # by phase, each decode step by itself
    busy_seconds: float = 0.0  # while a step computed
    joules: float | None = None  # of all devices, modelled


@dataclass(slots=True)
class _Client:
    """A request under way."""

    asked: Asked
    input_tokens: int
    first_token_at: float | None = None
    last_token_at: float = 0.0
    gaps: list[float] = field(default_factory=list[float])
    num_tokens: int = 0
    has_begun: bool = False


def replay(
    machine: Machine,
    asked: Sequence[Asked],
    *,
    decode_steps: int = _DECODE_STEPS,
    prefill_tokens: int | None = None,
    queue_timeout_seconds: float | None = None,
    patience_seconds: float = 0.0,
    warm_up: Sequence[str] = (),
    observe: Observer | None = None,
    progress: Callable[[int], None] | None = None,
) -> Replayed:
    """Replays a trace.

    Args:
        machine: Where.
        asked: The trace, in the order of time, of models of the machine by name, alias or route.
        decode_steps: Most decode steps that are one event, where they are all that could happen.
        prefill_tokens: Most tokens of a prompt's chunk while answers are being generated; as the programs by default.
        queue_timeout_seconds: How long a request may wait for its first step; for ever by default.
        patience_seconds: For how long a request that needs a switch lets later ones of its class go first.
        warm_up: Models that are asked once before, one after the other.
        observe: Told every event and action, those before the trace too, with the simulated time.
        progress: Told how many requests are finished.

    Raises:
        DoesNotFitError: if some model can never be hot within the budget.
        ConfigurationError: if the patience is no time, or for ever.
    """
    is_tiered = machine.target.kind == "tiered"
    scheduler = Scheduler(
        machine.models,
        machine.budget,
        tiered=is_tiered,
        queue_timeout_seconds=queue_timeout_seconds,
        patience_seconds=patience_seconds,
        decode_steps=decode_steps,
        prefill_tokens=prefill_tokens,
        kv_bytes_per_s=machine.target.link("ddr", "hbm").bandwidth_bytes_per_s if is_tiered else None,
        workflows=machine.workflows,
        routes=machine.routes,
        speculative=machine.speculative,
        links=machine.target.links,
    )
    executor = SimExecutor(machine.models, machine.target, draw=_TOKEN, step_cost=machine.step_cost)
    return _Replay(machine, scheduler, executor, observe, progress or (lambda done: None)).play(asked, warm_up)


class _Replay:
    """Sends requests and watches what becomes of them."""

    def __init__(
        self,
        machine: Machine,
        scheduler: Scheduler,
        executor: SimExecutor,
        observe: Observer | None,
        progress: Callable[[int], None],
    ) -> None:
        self._machine = machine
        self._scheduler = scheduler
        self._executor = executor
        self._also = observe
        self._progress = progress
        self._models = {name: [entry] for entry in machine.models for name in (entry.name, *entry.aliases)}
        for name, route in machine.routes.items():
            self._models[name] = [entry for model in route.models for entry in self._models[model]]
        self._request_seconds = serving_of(machine.target).request_seconds
        self._simulation = Simulation(scheduler, executor, self._see)
        self._begin = 0.0  # of the trace
        self._coming: Iterator[Asked] = iter(())
        self._ids = itertools.count(1)
        self._clients: dict[int, _Client] = {}
        self._outcomes: list[Outcome] = []
        self._step: tuple[Step, float] | None = None  # under way, with when it began
        self._drawn_at: Sequence[float] = ()  # when the decode steps ended that were the last event
        self._transfer: Transfer | None = None  # the latest
        self._energy = 0.0  # above idling, of the steps so far
        self._found = Replayed(Run((), 0))

    def play(self, asked: Sequence[Asked], warm_up: Sequence[str]) -> Replayed:
        """Replays a trace and returns what it came to."""
        began = time.perf_counter()
        simulation = self._simulation
        simulation.start()
        simulation.run()
        for model in warm_up:
            self._coming = iter([Asked(0.0, model, *_WARM_UP)])
            self._begin = simulation.now
            self._send_next()
            simulation.run()
        self._found, self._outcomes, self._energy = Replayed(Run((), 0)), [], 0.0
        self._begin = simulation.now
        self._coming = iter(asked)
        self._send_next()
        simulation.run()
        found = self._found
        found.begin_seconds = self._begin
        found.run = Run(tuple(self._outcomes), len(self._clients))
        found.seconds = simulation.now - self._begin
        if self._machine.idle_watts is not None and self._machine.step_watts is not None:
            found.joules = self._machine.idle_watts * (found.seconds - found.busy_seconds) + self._energy
        found.wall_seconds = time.perf_counter() - began
        return found

    # Requests

    def _send_next(self) -> None:
        """Sends the trace's next request that can be answered at all; one more comes when it has arrived."""
        for asked in self._coming:
            entries = self._models[asked.model]
            if any(_is_too_long(entry, asked) for entry in entries):
                refused = Answer(0.0, "HTTP 400 context_length_exceeded")
                self._finish(asked, refused)
                continue
            request_id = next(self._ids)
            request = Request(request_id, asked.model, _work(entries[0], asked, request_id))
            self._clients[request_id] = _Client(asked, asked.input_tokens)
            self._simulation.send(self._begin + asked.seconds + self._request_seconds, Arrival(request))
            return

    def _finish(self, asked: Asked, answer: Answer) -> None:
        self._outcomes.append(Outcome(asked.model, asked.seconds, 0.0, answer))
        self._progress(len(self._outcomes))

    # What happens

    def _see(self, now: float, item: Event | Action) -> None:
        if self._also is not None:
            self._also(now, item)
        match item:
            case Reply():
                self._reply(item, now)
            case Prefill() | Decode() | Verify() | Embed():
                self._step = item, now
                if not isinstance(item, Decode):
                    self._begin_step(item)
            case StepDone() | StepFailed():
                self._end_step(item, now)
            case Arrival(request):
                self._arrive(request.model)
                self._send_next()
            case Routed(_, model):
                self._arrive(model)
            case Transfer():
                self._transfer = item
                way = item.source, item.destination
                self._found.transfers[way] += 1
                self._found.moved_bytes[way] += item.num_bytes
            case TransferCancelled(_, done_bytes):
                assert self._transfer is not None
                way = self._transfer.source, self._transfer.destination
                self._found.moved_bytes[way] += done_bytes - self._transfer.num_bytes
            case SaveBlocks():
                self._found.moved_kv_bytes["hbm", "ddr"] += item.num_bytes
            case LoadBlocks():
                self._found.moved_kv_bytes["ddr", "hbm"] += item.num_bytes

    def _arrive(self, name: str) -> None:
        """Counts a request that has come for a model, once it is known for which one."""
        if name in self._scheduler.queues:
            self._found.arrivals[self._scheduler.residency.residency(name)] += 1

    def _begin_step(self, step: Prefill | Verify | Embed) -> None:
        for entry in step.entries:
            client = self._clients[entry.request_id]
            if not client.has_begun and isinstance(step, Prefill):
                client.has_begun = True
                self._found.prompt_tokens += client.input_tokens
                self._found.cached_tokens += entry.start  # type: ignore[union-attr]

    def _end_step(self, item: StepDone | StepFailed, now: float) -> None:
        if self._step is None:
            return  # a copy of KV blocks
        step, began = self._step
        self._step = None
        num_steps = len(item.tokens[0]) if isinstance(step, Decode) and isinstance(item, StepDone) else 1
        if num_steps > 1:
            cost = self._machine.step_cost(step)
            self._drawn_at = [*(began + cost.total(count) for count in range(1, num_steps)), now]
        else:
            self._drawn_at = ()
        self._found.num_steps[step.configuration.phase] += num_steps
        self._found.busy_seconds += now - began
        if self._machine.step_watts is not None:
            self._energy += (now - began) * self._machine.step_watts(step)

    def _reply(self, reply: Reply, now: float) -> None:
        client = self._clients[reply.request_id]
        if num_fresh := len(reply.tokens):
            since = client.last_token_at
            if self._drawn_at:
                client.gaps += [at - before for before, at in pairwise((since, *self._drawn_at))]
            elif client.first_token_at is None:
                client.first_token_at = now
            elif num_fresh == 1:
                client.gaps.append(now - since)
            else:
                client.gaps += [(now - since) / num_fresh] * num_fresh
            client.last_token_at = now
            client.num_tokens += num_fresh
        if reply.finish_reason is not None or reply.failure is not None:
            self._end(reply, client, now)

    def _end(self, reply: Reply, client: _Client, now: float) -> None:
        del self._clients[reply.request_id]
        if reply.timing is not None:
            self._found.queue_seconds.append(reply.timing.started_at - reply.timing.arrived_at)
            self._found.switch_seconds.append(reply.timing.switch_seconds)
        sent = self._begin + client.asked.seconds
        first = now if client.first_token_at is None else client.first_token_at
        answer = Answer(
            now - sent,
            reply.failure,
            ttft_seconds=None if reply.failure else first - sent,
            gaps_seconds=tuple(client.gaps),
            output_tokens=client.num_tokens,
            input_tokens=client.input_tokens,
        )
        self._finish(client.asked, answer)


def _is_too_long(entry: ModelEntry, asked: Asked) -> bool:
    if entry.kv is None:
        return asked.input_tokens > entry.sequence
    room = min(entry.sequence, entry.kv.num_blocks * entry.kv.block_tokens)
    return asked.input_tokens + asked.output_tokens > room


def _work(entry: ModelEntry, asked: Asked, request_id: int) -> GenerateWork | EmbedWork:
    prompt = _prompt(asked, request_id)
    return EmbedWork((prompt,)) if entry.kv is None else GenerateWork(prompt, asked.output_tokens, _GREEDY)


def _prompt(asked: Asked, request_id: int) -> tuple[int, ...]:
    """Returns tokens that a prompt shares with others exactly as far as the trace says."""
    if not asked.blocks:
        return (request_id, *[0] * (asked.input_tokens - 1))
    tokens: list[int] = []
    for block, size in asked.pieces():
        tokens += [_FIRST_BLOCK + block] * size
    return tuple(tokens)

"""The simulator: the scheduler's actions carried out in simulated time, on the machine that a target file describes.

The scheduler is the one that serves. `SimExecutor` says how long each step and each transfer takes there and what
comes of it; `simulate` plays a trace of arrivals against both and records every event and every action. There is no
I/O and no chance in it: equal input gives an equal record.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.configuration import Configuration
from ..compiler.target import Target
from .events import (
    Action,
    Arrival,
    Cancel,
    Decode,
    Embed,
    Event,
    GenerateWork,
    Prefill,
    Request,
    SequenceEntry,
    SetTimer,
    Step,
    StepDone,
    StepFailed,
    Timer,
    Transfer,
    TransferDone,
    TransferFailed,
    TransferProgressed,
)
from .scheduler import Scheduler

__all__ = ["Draw", "Record", "SimExecutor", "StepCost", "simulate"]

Draw: TypeAlias = Callable[[str, tuple[int, ...], int, int], int]  # (model, prompt, position, seed) -> token
StepCost: TypeAlias = Callable[[str, Configuration], float]  # seconds that one step of a model takes


@dataclass(frozen=True)
class Record:
    """One event or action, and when it came to pass."""

    at_seconds: float
    item: Event | Action


class SimExecutor:
    """Carries steps and transfers out in simulated time.

    Args:
        models: The models of the bundle.
        target: Whose links the transfers take.
        draw: Which token a model draws at a position of its answer; must depend on its arguments alone.
        step_cost: Seconds of one step; what was measured when the bundle was made by default.
        is_broken: Whether a step or a transfer fails, at its end; none by default.
    """

    def __init__(
        self,
        models: Sequence[ModelEntry],
        target: Target,
        *,
        draw: Draw,
        step_cost: StepCost | None = None,
        is_broken: Callable[[Step | Transfer], bool] = lambda _: False,
    ) -> None:
        self._ends = {entry.name: frozenset(entry.eos_token_ids) for entry in models}
        measured = {(e.name, p.configuration): p.step_seconds for e in models for p in e.programs}
        self._step_cost = step_cost or (lambda model, configuration: measured[model, configuration])
        self._target = target
        self._draw = draw
        self._is_broken = is_broken
        self._requests: dict[int, Request] = {}

    def expect(self, request: Request) -> None:
        """Notes a request whose steps will follow: what is drawn for it depends on its prompt."""
        self._requests[request.id] = request

    def run(self, step: Step) -> tuple[float, Event]:
        """Returns how many seconds a step takes, and the event that ends it."""
        seconds = self._step_cost(step.model, step.configuration)
        if self._is_broken(step):
            return seconds, StepFailed(step.step_id, f"step {step.step_id} of {step.model} was made to fail")
        match step:
            case Embed():
                return seconds, StepDone(step.step_id)
            case Prefill():
                drawn = tuple(() if e.sampling is None else (self._drawn(step, e, 0),) for e in step.entries)
                return seconds, StepDone(step.step_id, drawn)
            case Decode():
                rows = self._decode(step)
                return seconds * len(rows), StepDone(step.step_id, tuple(zip(*rows, strict=True)))

    def copy(self, transfer: Transfer) -> list[tuple[float, Event]]:
        """Returns the events of a transfer, each with the seconds after which it comes."""
        link = self._target.link(transfer.source, transfer.destination)
        seconds = link.latency_seconds + transfer.num_bytes / link.bandwidth_bytes_per_s
        transfer_id = transfer.transfer_id
        if self._is_broken(transfer):
            return [(seconds, TransferFailed(transfer_id, f"the transfer of {transfer.model} was made to fail"))]
        halfway = TransferProgressed(transfer_id, transfer.num_bytes // 2)
        return [(seconds / 2, halfway), (seconds, TransferDone(transfer_id))]

    def _decode(self, step: Decode) -> list[tuple[int, ...]]:
        """Returns what is drawn in each of up to `max_steps` steps; the last is the one in which an answer ends."""
        rows: list[tuple[int, ...]] = []
        while len(rows) < step.max_steps:
            rows.append(tuple(self._drawn(step, entry, len(rows)) for entry in step.entries))
            if not self._ends[step.model].isdisjoint(rows[-1]):
                break
        return rows

    def _drawn(self, step: Step, entry: SequenceEntry, offset: int) -> int:
        work = self._requests[entry.request_id].work
        assert isinstance(work, GenerateWork), entry.request_id
        return self._draw(step.model, work.prompt, entry.num_generated + offset, work.sampling.seed)


def simulate(
    scheduler: Scheduler,
    executor: SimExecutor,
    arrivals: Iterable[tuple[float, Request]],
    *,
    cancels: Iterable[tuple[float, int]] = (),
    until_seconds: float = float("inf"),
) -> tuple[Record, ...]:
    """Returns everything that happens, in order, until nothing is under way any more.

    Args:
        scheduler: A new one.
        executor: Of the same models.
        arrivals: Seconds from the start, and the request that comes in then.
        cancels: Seconds from the start, and the id of the request whose client goes away then.
        until_seconds: When to stop whatever is under way.
    """
    serial = itertools.count()  # of events at the same time, the one that was known first comes first
    agenda: list[tuple[float, int, Event]] = [(at, next(serial), Arrival(request)) for at, request in arrivals]
    agenda += [(at, next(serial), Cancel(request_id)) for at, request_id in cancels]
    heapq.heapify(agenda)
    records: list[Record] = []

    def carry_out(actions: Iterable[Action], now: float) -> None:
        for action in actions:
            records.append(Record(now, action))
            for at, event in _consequences(executor, action, now):
                heapq.heappush(agenda, (at, next(serial), event))

    carry_out(scheduler.start(0.0), 0.0)
    while agenda and agenda[0][0] <= until_seconds:
        now, _, event = heapq.heappop(agenda)
        if isinstance(event, Arrival):
            executor.expect(event.request)
        records.append(Record(now, event))
        carry_out(scheduler.handle(event, now), now)
    return tuple(records)


def _consequences(executor: SimExecutor, action: Action, now: float) -> list[tuple[float, Event]]:
    """Returns the events that an action leads to, and when."""
    match action:
        case Prefill() | Decode() | Embed():
            seconds, event = executor.run(action)
            return [(now + seconds, event)]
        case Transfer():
            return [(now + seconds, event) for seconds, event in executor.copy(action)]
        case SetTimer(timer_id, at_seconds):
            return [(at_seconds, Timer(timer_id))]
        case _:
            return []

"""The simulator: the scheduler's actions carried out in simulated time, on the machine that a target file describes.

The scheduler is the one that serves. `SimExecutor` says how long each step and each transfer takes there and what
comes of it; `Simulation` plays events against both, and `simulate` records every event and every action of a trace.
There is no I/O and no chance in it: equal input gives an equal record.

Time passes as in the engine (`core.py`): its thread computes a step to the end and takes in what has come meanwhile
after that, before the step's own end.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.target import Target
from .events import (
    Action,
    Arrival,
    Cancel,
    CancelTransfer,
    Check,
    Decode,
    Embed,
    Event,
    Evict,
    GenerateWork,
    LoadBlocks,
    Prefill,
    Reply,
    Request,
    SaveBlocks,
    SequenceEntry,
    SetTimer,
    Step,
    StepDone,
    StepFailed,
    Timer,
    Transfer,
    TransferCancelled,
    TransferDone,
    TransferEnd,
    TransferFailed,
    TransferProgressed,
    Verify,
)
from .memory_use import READING_INTERVAL_SECONDS
from .pool_copies import GROUP_BLOCKS
from .scheduler import Scheduler
from .simulation.costs import StepCost, measured_costs, serving_of

__all__ = ["Draw", "Record", "SimExecutor", "Simulation", "simulate"]

Draw: TypeAlias = Callable[[str, tuple[int, ...], int, int], int]  # (model, prompt, position, seed) -> token

_REST_SECONDS = 0.15  # after which the engine is wholly rested, and of work after which it is no longer


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
        draw: Which token a model draws at a position of its answer; must depend on its arguments alone. Or the token
            that is always drawn, and never an end.
        acceptance: Share of a draft's proposals that are accepted, where one token is always drawn; elsewhere those are
            that the draft and its target both draw.
        step_cost: What steps take; what was measured when the target was calibrated or the bundle made by default.
        is_broken: Whether a step, a copy or a transfer fails, at its end; none by default.
    """

    def __init__(
        self,
        models: Sequence[ModelEntry],
        target: Target,
        *,
        draw: Draw | int,
        acceptance: float = 0.7,
        step_cost: StepCost | None = None,
        is_broken: Callable[[Step | SaveBlocks | LoadBlocks | Transfer], bool] | None = None,
    ) -> None:
        self._ends = {entry.name: frozenset(entry.eos_token_ids) for entry in models}
        self.step_cost = step_cost or measured_costs(models, target)
        self._target = target
        self._serving = serving_of(target)
        rate = self._serving.pool_bytes_per_s
        self._pool_seconds = {e.name: max(s.kv_bytes for s in e.shares) / rate if rate else 0.0 for e in models}
        self._read_at = -math.inf
        self._is_reading = False  # after the next step
        self._draw = draw
        self._acceptance = acceptance
        self._is_broken = is_broken
        self._requests: dict[int, Request] = {}  # whose draws depend on their prompts

    def expect(self, request: Request) -> None:
        """Notes a request whose steps will follow: what is drawn for it depends on its prompt."""
        if not isinstance(self._draw, int):
            self._requests[request.id] = request

    def run(self, step: Step, within_seconds: float = float("inf"), *, rest: float = 0.0) -> tuple[float, Event]:
        """Returns how many seconds a step takes, and the event that ends it.

        Args:
            step: Several decode steps in one action end early with the one during which something else happens.
            within_seconds: When that is.
            rest: How rested the engine is: 0 amid work, 1 when it has done nothing for a while.
        """
        cost = self.step_cost(step)
        more = rest * cost.rested
        if self._is_reading:
            self._is_reading, more = False, more + self._serving.reading_seconds
        if self._is_broken is not None and self._is_broken(step):
            failed = StepFailed(step.step_id, f"step {step.step_id} of {step.model} was made to fail")
            return cost.first + more, failed
        tokens: tuple[tuple[int, ...], ...] = ()
        seconds = cost.first
        match step:
            case Decode():
                tokens = self._decode(step, cost.steps_within(within_seconds, step.max_steps))
                seconds = cost.total(len(tokens[0]))
            case Prefill():
                tokens = tuple([() if e.sampling is None else (self._drawn(step.model, e, 0),) for e in step.entries])
            case Verify():
                tokens = self._verify(step)
            case Embed():
                pass
        return seconds + more, StepDone(step.step_id, tokens)

    def evict(self) -> float:
        """Returns how long the engine takes to drop a model."""
        return self._serving.evict_seconds

    def take_over(self, now: float) -> None:
        """Begins to use a model that has arrived; the engine may read what is in use after its next step."""
        if now - self._read_at >= READING_INTERVAL_SECONDS:
            self._read_at, self._is_reading = now, True

    def copy(self, transfer: Transfer) -> list[tuple[float, Event]]:
        """Returns the events of a transfer, each with the seconds after which it comes."""
        seconds = self._copy_seconds(transfer, transfer.num_bytes)
        if transfer.destination == "hbm":
            seconds += self._pool_seconds[transfer.model]
        transfer_id = transfer.transfer_id
        if self._is_broken is not None and self._is_broken(transfer):
            return [(seconds, TransferFailed(transfer_id, f"the transfer of {transfer.model} was made to fail"))]
        # Of its chunks, the scheduler needs to know when all but the last one have arrived.
        before_last = max(0, math.ceil(transfer.num_bytes / transfer.chunk_bytes) - 1) * transfer.chunk_bytes
        progress = (self._copy_seconds(transfer, before_last), TransferProgressed(transfer_id, before_last))
        return [*([progress] if before_last else []), (seconds, TransferDone(transfer_id))]

    def cancel(self, transfer: Transfer, after_seconds: float) -> tuple[float, Event]:
        """Returns after how many seconds a transfer ends that is told to at some time, and the event of that."""
        chunk_seconds = self._copy_seconds(transfer, transfer.chunk_bytes) - self._copy_seconds(transfer, 0)
        begun = after_seconds - self._copy_seconds(transfer, 0)
        done_bytes = max(1, math.ceil(begun / chunk_seconds)) * transfer.chunk_bytes
        seconds = max(after_seconds, self._copy_seconds(transfer, done_bytes))
        return seconds, TransferCancelled(transfer.transfer_id, done_bytes)

    def _copy_seconds(self, transfer: Transfer, num_bytes: int) -> float:
        link = self._target.link(transfer.source, transfer.destination)
        return link.latency_seconds + num_bytes / link.bandwidth_bytes_per_s

    def copy_blocks(self, action: SaveBlocks | LoadBlocks) -> tuple[float, Event]:
        """Returns how many seconds a copy of KV blocks takes, either way, and the event that ends it."""
        link, serving = self._target.link("ddr", "hbm"), self._serving
        a_group = serving.save_seconds if isinstance(action, SaveBlocks) else serving.load_seconds
        seconds = link.latency_seconds + action.num_bytes / link.bandwidth_bytes_per_s
        seconds = max(seconds, a_group * math.ceil(len(action.copies) / GROUP_BLOCKS)) + serving.step_seconds
        if self._is_broken is not None and self._is_broken(action):
            return seconds, StepFailed(action.step_id, f"copy {action.step_id} of {action.model} was made to fail")
        return seconds, StepDone(action.step_id)

    def _decode(self, step: Decode, num_steps: int) -> tuple[tuple[int, ...], ...]:
        """Returns what is drawn for each entry in so many steps, or up to the first that ends an answer."""
        if isinstance(self._draw, int):
            return ((self._draw,) * num_steps,) * len(step.entries)
        rows: list[tuple[int, ...]] = []
        while len(rows) < num_steps:
            rows.append(tuple(self._drawn(step.model, entry, len(rows)) for entry in step.entries))
            if not self._ends[step.model].isdisjoint(rows[-1]):
                break
        return tuple(zip(*rows, strict=True))

    def _verify(self, step: Verify) -> tuple[tuple[int, ...], ...]:
        """Returns for each entry the proposals that are accepted and the token after them."""
        proposed = {e.request_id: n for e, n in zip(step.draft.entries, step.draft.num_tokens, strict=True)}
        drafts = {entry.request_id: entry for entry in step.draft.entries}
        tokens: list[tuple[int, ...]] = []
        for entry in step.entries:
            drawn: list[int] = []
            for offset in range(proposed.get(entry.request_id, 0)):
                drawn.append(self._drawn(step.model, entry, offset))
                is_end = drawn[-1] in self._ends[step.model]
                if is_end or not self._is_accepted(step, drafts[entry.request_id], offset, drawn[-1]):
                    break
            else:
                drawn.append(self._drawn(step.model, entry, len(drawn)))
            tokens.append(tuple(drawn))
        return tuple(tokens)

    def _is_accepted(self, step: Verify, entry: SequenceEntry, offset: int, token: int) -> bool:
        if not isinstance(self._draw, int):
            return self._drawn(step.draft.model, entry, offset) == token
        position = entry.num_generated + offset
        return (position + 1) * self._acceptance % 1 < self._acceptance  # of any run of positions that share

    def _drawn(self, model: str, entry: SequenceEntry, offset: int) -> int:
        if isinstance(self._draw, int):
            return self._draw
        work = self._requests[entry.request_id].work
        assert isinstance(work, GenerateWork), entry.request_id
        return self._draw(model, work.prompt, entry.num_generated + offset, work.sampling.seed)


class Simulation:
    """A scheduler and its executor in simulated time, from 0 on.

    Args:
        scheduler: A new one.
        executor: Of the same models.
        observe: Told the time and every event and action, in order.
    """

    def __init__(
        self, scheduler: Scheduler, executor: SimExecutor, observe: Callable[[float, Event | Action], None]
    ) -> None:
        self.now = 0.0
        self._scheduler = scheduler
        self._executor = executor
        self._observe = observe
        self._serial = itertools.count()  # of events at the same time, the one that was known first comes first
        self._agenda: list[tuple[float, int, Event]] = []  # a heap
        self._free_at = 0.0  # when the engine takes in the next event
        self._rest_seconds = 0.0  # of the engine before its last work, that this did not work off
        self._transfers: dict[int, tuple[float, Transfer]] = {}  # under way, with when they began

    def send(self, at_seconds: float, event: Event) -> None:
        """Has an event happen."""
        heapq.heappush(self._agenda, (at_seconds, next(self._serial), event))

    def start(self) -> None:
        """Lets the scheduler take its first actions."""
        self._carry_out(self._scheduler.start(self.now))

    def run(self, until_seconds: float = float("inf")) -> None:
        """Plays what happens until a moment, or until nothing is under way any more."""
        agenda = self._agenda
        while agenda and agenda[0][0] <= until_seconds:
            at, _, event = heapq.heappop(agenda)
            now = max(at, self._free_at)
            match event:
                case StepDone():
                    pass  # as most are
                case TransferProgressed() | TransferDone() | TransferCancelled() | TransferFailed():
                    if not self._is_under_way(event):
                        continue
                    if isinstance(event, TransferDone):
                        self._executor.take_over(now)
                case Arrival(request) | Check(request):
                    self._executor.expect(request)
                case _:
                    pass
            self.now = now
            self._observe(now, event)
            self._carry_out(self._scheduler.handle(event, now))

    def _is_under_way(self, event: TransferProgressed | TransferEnd) -> bool:
        """Whether a transfer has not ended before; of a cancelled one the first end is the one that counts."""
        is_under_way = event.transfer_id in self._transfers
        if isinstance(event, TransferEnd):
            self._transfers.pop(event.transfer_id, None)
        return is_under_way

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._observe(self.now, action)
            if not isinstance(action, Reply):  # most actions are, and nothing follows from them
                for at, event in self._consequences(action):
                    self.send(at, event)

    def _consequences(self, action: Action) -> list[tuple[float, Event]]:
        """Returns the events that an action leads to, and when."""
        match action:
            case Prefill() | Decode() | Verify() | Embed():
                until_next = self._agenda[0][0] - self.now if self._agenda else float("inf")
                rest = self._rest()
                seconds, event = self._executor.run(action, until_next, rest=rest / _REST_SECONDS)
                return [(self._work(seconds, rest), event)]
            case SaveBlocks() | LoadBlocks():
                seconds, event = self._executor.copy_blocks(action)
                return [(self._work(seconds, self._rest()), event)]
            case Transfer():
                self._transfers[action.transfer_id] = self.now, action
                return [(self.now + seconds, event) for seconds, event in self._executor.copy(action)]
            case CancelTransfer(transfer_id):
                began, transfer = self._transfers[transfer_id]
                seconds, event = self._executor.cancel(transfer, self.now - began)
                return [(began + seconds, event)]
            case SetTimer(timer_id, at_seconds):
                return [(at_seconds, Timer(timer_id))]
            case Evict():
                self._spend(self._executor.evict())
                return []
            case _:
                return []

    def _rest(self) -> float:
        """Returns for how many seconds the engine has rested that it has not worked off."""
        return min(self._rest_seconds + max(0.0, self.now - self._free_at), _REST_SECONDS)

    def _work(self, seconds: float, rest_seconds: float) -> float:
        """Lets the engine's thread work from now on, after so much rest; returns when it will be done."""
        self._rest_seconds = max(0.0, rest_seconds - seconds)
        self._free_at = max(self._free_at, self.now + seconds)
        return self._free_at

    def _spend(self, seconds: float) -> None:
        """Lets the engine's thread be busy for a while, in the midst of what it does."""
        self._work(seconds, self._rest())
        self.now += seconds


def simulate(
    scheduler: Scheduler,
    executor: SimExecutor,
    arrivals: Iterable[tuple[float, Request]],
    *,
    cancels: Iterable[tuple[float, int]] = (),
    events: Iterable[tuple[float, Event]] = (),
    until_seconds: float = float("inf"),
) -> tuple[Record, ...]:
    """Returns everything that happens, in order, until nothing is under way any more.

    Args:
        scheduler: A new one.
        executor: Of the same models.
        arrivals: Seconds from the start, and the request that comes in then.
        cancels: Seconds from the start, and the id of the request whose client goes away then.
        events: Seconds from the start, and what else happens then.
        until_seconds: When to stop whatever is under way.
    """
    records: list[Record] = []
    simulation = Simulation(scheduler, executor, lambda now, item: records.append(Record(now, item)))
    for at, request in arrivals:
        simulation.send(at, Arrival(request))
    for at, request_id in cancels:
        simulation.send(at, Cancel(request_id))
    for at, event in events:
        simulation.send(at, event)
    simulation.start()
    simulation.run(until_seconds)
    return tuple(records)

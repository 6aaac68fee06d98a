"""The engine's threads: between the scheduler, which decides, and the executor, which does.

The engine thread takes events from a queue, hands them to the scheduler and carries its actions out; a step runs on
it to its end. The transfer thread copies, one transfer after the other. Nothing else touches either object. Replies
go to the sink that came with a request: a function that must be quick and must not block.
"""

from __future__ import annotations

import heapq
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..errors import ExecutionError, PlaitError, QueueFullError, ShuttingDownError
from .canary import Canaries
from .clock import Clock
from .energy import EnergyMeter
from .events import (
    Action,
    Arrival,
    Cancel,
    CancelTransfer,
    Check,
    Checked,
    CopyBlocks,
    Decode,
    DropBlocks,
    Embed,
    EmbedWork,
    Event,
    Evict,
    GenerateWork,
    LoadBlocks,
    Prefill,
    Reply,
    Request,
    Routed,
    SaveBlocks,
    SetTimer,
    Step,
    StepFailed,
    TierName,
    Timer,
    Transfer,
    TransferCancelled,
    TransferDone,
    TransferFailed,
    TransferProgressed,
    Verify,
)
from .executor import JaxExecutor, Logprobs
from .memory_use import MemoryUse, TierUse
from .metrics import Metrics
from .request import Energy, LastMove
from .scheduler import Scheduler
from .tiers import Moved, TransferRecord

__all__ = ["EngineCore", "Outcome", "Sink", "Watcher"]

_LOG = logging.getLogger(__name__)
_KEPT_RECORDS = 10_000


@dataclass(frozen=True)
class Outcome:
    """A reply as a sink gets it."""

    reply: Reply
    vectors: tuple[np.ndarray, ...] = ()  # with the end of an embedding request, in the order of its sequences
    logprobs: tuple[Logprobs, ...] = ()  # of each of the reply's tokens, where they were asked for
    energy: Energy | None = None  # of the request so far, where it is known
    model: str = ""  # that was chosen, for a request to be told that


Sink: TypeAlias = Callable[[Outcome], None]
Watcher: TypeAlias = Callable[[float, Event | Action], None]  # told when each event and action was, as a timeline is


@dataclass(eq=False)
class _Client:
    sink: Sink
    model: str
    num_prompt: int  # 0 for an embedding
    is_counted: bool  # among the requests: one for an answer or vectors
    last_token_at: float | None = None
    has_started: bool = False
    is_answered: bool = False
    joules: float = 0.0


def _client(request: Request, sink: Sink) -> _Client:
    num_prompt = len(request.work.prompt) if isinstance(request.work, GenerateWork) else 0
    return _Client(sink, request.model, num_prompt, isinstance(request.work, GenerateWork | EmbedWork))


@dataclass(frozen=True)
class _Arrived:
    """A transfer that is done, with what it made."""

    transfer: Transfer
    moved: Moved


class _Stop:
    """Ends a thread."""


class _StoppedTransferError(Exception):
    """Ends a copy that is under way."""


class EngineCore:
    """Runs a scheduler's actions on an executor.

    Args:
        scheduler: Decides; belongs to the engine thread from `start` on.
        executor: Does.
        clock: The scheduler's time.
        metrics: Told what happens.
        max_requests: Requests under way at once; further ones are refused.
        energy: Says what steps take; None: nothing is known of power.
        canaries: Say what models that wake up are asked, and what their answers mean; None: nothing.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: JaxExecutor,
        clock: Clock,
        metrics: Metrics,
        *,
        max_requests: int,
        energy: EnergyMeter | None = None,
        canaries: Canaries | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._clock = clock
        self._metrics = metrics
        self._max_requests = max_requests
        self._energy = energy
        self._canaries = canaries
        self._events: queue.SimpleQueue[Event | _Arrived | _Stop] = queue.SimpleQueue()
        self._transfers: queue.SimpleQueue[Transfer | _Stop] = queue.SimpleQueue()
        self._cancelled: set[int] = set()  # ids of transfers that are to end
        self._timers: list[tuple[float, int]] = []
        self._clients: dict[int, _Client] = {}
        self._lock = threading.Lock()  # of `_clients` and `_is_closing`
        self._is_closing = False
        self._settled = threading.Event()
        self._memory = MemoryUse(executor, scheduler.residency, clock, metrics)
        self._used_at: dict[str, float] = {}  # by model, when its last step began
        self.last_moves: dict[str, LastMove] = {}  # by model
        self._num_preemptions: Counter[str] = Counter()  # that were counted, by model
        self._speculated: dict[str, tuple[int, int]] = {}  # tokens proposed and accepted that were counted, by model
        self.records: deque[TransferRecord] = deque(maxlen=_KEPT_RECORDS)
        self.watcher: Watcher | None = None  # called on the engine thread: it must be quick
        self._transfer_began = 0.0  # the last one
        self._engine_thread = threading.Thread(target=self._run_engine, name="plait-engine", daemon=True)
        self._transfer_thread = threading.Thread(target=self._run_transfers, name="plait-transfer", daemon=True)

    def start(self) -> None:
        """Starts the threads and returns when pinned models are hot and the others as close as there is room."""
        try:
            self._engine_thread.start()
            self._transfer_thread.start()
            self._settled.wait()
        except BaseException:  # Ctrl-C: nobody will have a runtime to close
            self.close()
            raise

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return self._settled.is_set() and not self._is_closing and self._engine_thread.is_alive()

    def submit(self, request: Request, sink: Sink) -> None:
        """Hands a request in; its outcomes go to `sink`, on the engine thread.

        By a route's name, only a request to be told the model: what to compute depends on it.

        Raises:
            QueueFullError: if too many are under way.
            ShuttingDownError: if the engine is closing.
            ExecutionError: if the engine has died.
        """
        with self._lock:
            if self._is_closing:
                raise ShuttingDownError("the runtime is shutting down")
            if not self._engine_thread.is_alive():
                raise ExecutionError("the engine has stopped after an internal error; see its log")
            if len(self._clients) >= self._max_requests:
                raise QueueFullError(
                    f"{len(self._clients)} requests are under way, the limit is {self._max_requests}; try again later"
                )
            client = self._clients[request.id] = _client(request, sink)
        if client.is_counted:
            self._metrics.request_arrived(request.model, self._scheduler.residency.residency(request.model))
        self._events.put(Arrival(request))

    def release(self, request_id: int) -> bool:
        """Ends a request if it is under way, and returns whether it was; nothing more goes to its sink."""
        with self._lock:
            client = self._clients.pop(request_id, None)
        if client is not None:
            self._events.put(Cancel(request_id))
        return client is not None

    def close(self) -> None:
        """Fails what is under way, ends the threads and frees all memory. May be called more than once."""
        with self._lock:
            self._is_closing = True
        if self._engine_thread.is_alive():
            self._events.put(_Stop())
            self._engine_thread.join()
        if self._transfer_thread.is_alive():
            self._transfers.put(_Stop())
            self._transfer_thread.join()
        self._executor.release()

    def tier_bytes(self, model: str, *more: TierName) -> dict[str, int]:
        """Returns the bytes that a model has in each tier above the disk that it is in, or in `more`."""
        residency = self._scheduler.residency
        return {tier: residency.held_bytes(model, tier) for tier in (*residency.tiers_of(model), *more)}

    def tier_uses(self) -> tuple[TierUse, ...]:
        """Returns the use of each tier."""
        return self._memory.tiers

    # The engine thread

    def _run_engine(self) -> None:
        message = "the runtime was shut down"
        try:
            self._perform(self._scheduler.start(self._clock.now()))
            self._settle()
            while not isinstance(item := self._next_event(), _Stop):
                self._handle(item)
        except Exception:
            _LOG.exception("the engine has failed")
            message = "the engine has stopped after an internal error"
        finally:
            self._settled.set()
            self._fail_all(message)

    def _next_event(self) -> Event | _Arrived | _Stop:
        """Returns the timer that is due, or waits for whatever comes first: an event, or the next timer."""
        if self._executor.has_news and self._events.empty():
            self._memory.observe()
        try:
            if not self._timers:
                return self._events.get()
            wait = self._timers[0][0] - self._clock.now()
            if wait > 0:
                return self._events.get(timeout=wait)
        except queue.Empty:
            pass
        return Timer(heapq.heappop(self._timers)[1])

    def _handle(self, item: Event | _Arrived) -> None:
        if isinstance(item, _Arrived):
            self._arrived(item)
            ended = self._transfer_began + item.moved.record.seconds  # a step may have been under way since
            item = TransferDone(item.transfer.transfer_id)
            self._watch(item, ended)
        else:
            self._watch(item, self._clock.now())
        if isinstance(item, Cancel):
            self._forget_vectors(item.request_id)
            self._executor.logprobs.pop(item.request_id, None)
        self._perform(self._scheduler.handle(item, self._clock.now()))
        self._settle()

    def _settle(self) -> None:
        if not self._settled.is_set() and self._scheduler.is_settled:
            self._memory.observe()
            self._settled.set()

    def _watch(self, item: Event | Action, seconds: float) -> None:
        if self.watcher is not None:
            self.watcher(seconds, item)

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            self._watch(action, self._clock.now())
            match action:
                case Reply():
                    self._deliver(action)
                case Routed():
                    self._tell_route(action)
                case Evict():
                    self._evict(action)
                case Transfer():
                    self._transfer_began = self._clock.now()
                    self._transfers.put(action)
                case CancelTransfer(transfer_id):
                    self._cancelled.add(transfer_id)
                case SetTimer(timer_id, at_seconds):
                    heapq.heappush(self._timers, (at_seconds, timer_id))
                case Prefill() | Decode() | Verify() | Embed():
                    self._begin_requests(action)
                    self._run_step(action)
                case SaveBlocks() | LoadBlocks():
                    self._run(action)
                    self._metrics.kv_copied(is_saved=isinstance(action, SaveBlocks), num_bytes=action.num_bytes)
                case CopyBlocks():
                    self._executor.copy_blocks(action)
                case DropBlocks():
                    self._executor.drop_blocks(action)
        self._report_queues()

    def _begin_requests(self, step: Step) -> None:
        for entry in step.entries:
            client = self._clients.get(entry.request_id)
            if client is not None and not client.has_started:
                client.has_started = True
                self._metrics.request_started(client.model)

    def _run_step(self, step: Step) -> None:
        self._used_at[step.model] = self._clock.now()
        if self._energy is None:
            self._run(step)
            return
        self._energy.begin()
        began = self._clock.now()
        self._run(step)
        joules = self._energy.end(step, self._clock.now() - began)
        self._metrics.computed(step.model, sum(joules.values()))
        for request_id, share in joules.items():
            if (client := self._clients.get(request_id)) is not None:
                client.joules += share

    def _run(self, step: Step | SaveBlocks | LoadBlocks) -> None:
        try:
            self._events.put(self._executor.run(step))
        except PlaitError as error:
            _LOG.error("step %d of %s failed: %s", step.step_id, step.model, error)
            self._events.put(StepFailed(step.step_id, str(error)))
        if self._executor.has_news:
            self._memory.observe()

    def _deliver(self, reply: Reply) -> None:
        is_last = reply.finish_reason is not None or reply.failure is not None
        with self._lock:
            client = self._clients.get(reply.request_id)
            if is_last:
                self._clients.pop(reply.request_id, None)
        vectors = self._forget_vectors(reply.request_id) if is_last else ()
        logprobs = self._executor.logprobs.pop(reply.request_id, [])[: len(reply.tokens)]  # an end is no token
        if client is None:
            if reply.request_id < 0:
                self._hear_canary(reply, vectors)
            return
        if reply.timing is not None and not client.is_answered:
            client.is_answered = True
            self._metrics.prompt_looked_up(client.model, client.num_prompt, reply.timing.cached_tokens)
        if reply.tokens:
            now = self._clock.now()
            gap = None if client.last_token_at is None else now - client.last_token_at
            client.last_token_at = now
            self._metrics.tokens_generated(client.model, gap, len(reply.tokens))
        if reply.failure is not None and client.is_counted:
            self._metrics.request_finished(client.model, "error")
        energy = None if self._energy is None else Energy(client.joules, self._energy.source)
        client.sink(Outcome(reply, vectors, tuple(logprobs), energy))

    def _ask_canary(self, model: str) -> None:
        request = None if self._canaries is None else self._canaries.wake(model)
        if request is not None:
            self._events.put(Check(request))

    def _hear_canary(self, reply: Reply, vectors: Sequence[np.ndarray]) -> None:
        assert self._canaries is not None, "nobody else asks under such numbers"
        model = self._canaries.model_of(reply.request_id)
        verdict = self._canaries.hear(reply, vectors)
        if reply.failure == "dropped" and self._scheduler.residency.is_hot(model):
            self._ask_canary(model)
        if verdict is not None:
            self._metrics.checked(verdict.model, is_healthy=not verdict.message)
            if verdict.message:
                _LOG.error("%s", verdict.message)
            self._events.put(Checked(verdict.model, verdict.message))

    def _tell_route(self, routed: Routed) -> None:
        with self._lock:
            client = self._clients.pop(routed.request_id, None)
        if client is not None:
            self._metrics.routed(client.model, routed.model)
            client.sink(Outcome(Reply(routed.request_id, finish_reason="stop"), model=routed.model))

    def _forget_vectors(self, request_id: int) -> tuple[np.ndarray, ...]:
        """Takes the finished vectors of a request out of the executor, in the order of its sequences."""
        keys = sorted(key for key in self._executor.vectors if key[0] == request_id)
        return tuple(self._executor.vectors.pop(key) for key in keys)

    def _evict(self, evict: Evict) -> None:
        last_used = self._used_at.get(evict.model, self._scheduler.residency.arrived_at(evict.model))
        if self._executor.evict(evict):
            self._metrics.evicted(evict.model, evict.tier, self._clock.now() - last_used)
        self._metrics.model_bytes(evict.model, self.tier_bytes(evict.model))
        self._memory.observe()

    def _arrived(self, item: _Arrived) -> None:
        self._executor.arrived(item.transfer, item.moved)
        record = item.moved.record
        self.records.append(record)
        self._metrics.switched(record.model, record.source, record.destination, record.num_bytes, record.seconds)
        self.last_moves[record.model] = LastMove(
            record.source, record.destination, record.num_bytes, record.seconds, time.time()
        )
        # The scheduler hears of it next.
        self._metrics.model_bytes(record.model, self.tier_bytes(record.model, record.destination))
        if record.destination == "hbm":
            self._ask_canary(record.model)

    def _report_queues(self) -> None:
        for name, waiting in self._scheduler.queues.items():
            self._metrics.queue(name, waiting.num_running, len(waiting.waiting))
            if waiting.pool is not None:
                self._metrics.kv(name, 1 - waiting.pool.num_free / waiting.pool.num_blocks)
                self._metrics.preempted(name, waiting.num_preemptions - self._num_preemptions[name])
                self._num_preemptions[name] = waiting.num_preemptions
                before = self._speculated.get(name, (0, 0))
                now = self._speculated[name] = (waiting.num_proposed, waiting.num_accepted)
                if now != before:
                    self._metrics.speculated(name, now[0] - before[0], now[1] - before[1])

    def _fail_all(self, message: str) -> None:
        with self._lock:
            self._is_closing = True
            clients = list(self._clients.items())
            self._clients.clear()
        for request_id, client in clients:
            if client.is_counted:
                self._metrics.request_finished(client.model, "error")
            client.sink(Outcome(Reply(request_id, failure="failed", message=message)))

    # The transfer thread

    def _run_transfers(self) -> None:
        while not isinstance(transfer := self._transfers.get(), _Stop):
            self._events.put(self._end_of(transfer))
            self._cancelled.discard(transfer.transfer_id)

    def _end_of(self, transfer: Transfer) -> Event | _Arrived:
        """Carries a transfer out and returns how it ended."""
        done_bytes = 0

        def progress(num_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes = num_bytes
            if self._is_closing or transfer.transfer_id in self._cancelled:
                raise _StoppedTransferError
            if 0 < transfer.num_bytes - num_bytes <= transfer.chunk_bytes:
                self._events.put(TransferProgressed(transfer.transfer_id, num_bytes))

        try:
            return _Arrived(transfer, self._executor.copy(transfer, progress))
        except _StoppedTransferError:
            return TransferCancelled(transfer.transfer_id, done_bytes)
        except PlaitError as error:
            _LOG.error("transfer of %s to %s failed: %s", transfer.model, transfer.destination, error)
            return TransferFailed(transfer.transfer_id, str(error))
        except Exception as error:
            _LOG.exception("transfer of %s to %s failed", transfer.model, transfer.destination)
            return TransferFailed(transfer.transfer_id, f"the transfer failed: {error}")

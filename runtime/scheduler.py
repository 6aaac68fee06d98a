"""The scheduler: a deterministic state machine that decides what runs, what moves and who waits.

Events go in with the time, actions come out (`events.py`); there is no I/O and no clock of its own. The same code
serves requests behind `JaxExecutor` and is simulated. The policy:

- One step computes at a time and one transfer moves at a time; the two overlap.
- Order is first come, first served within a priority class. A request for a model that isn't hot is held, never
  refused. If room has to be made, idle models go first, least recently used first; if that is not enough, the models
  in the way stop admitting requests younger than the one that waits, so that they become idle. Which ones these are
  is settled once: chosen anew each time, steps in turn would change it, and none of them would ever run dry.
- A busy model is never evicted; all requests for one missing model share one eviction and one transfer.
- Hot models with work take turns, a step each; within a model, prefill chunks and decode steps alternate.
- A sequence owns KV blocks for what it has computed. When the pool is empty, the youngest sequence gives its blocks
  back and is computed anew later: no token of it is lost or repeated, for draws depend on seed and position only.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..compiler.bundle.manifest import ModelEntry, TierBudget
from ..compiler.configuration import Phase
from .events import (
    Action,
    Arrival,
    Cancel,
    Decode,
    Embed,
    EmbedEntry,
    Event,
    Evict,
    GenerateWork,
    Prefill,
    Reply,
    Request,
    SequenceEntry,
    SetTimer,
    StepDone,
    StepFailed,
    TierName,
    Timer,
    Transfer,
    TransferDone,
    TransferFailed,
    TransferProgressed,
)
from .jobs import EmbedJob, GenerateJob, Job
from .kv_cache import BlockPool
from .model_queue import ModelQueue
from .request import FinishReason
from .residency import ResidencyManager

__all__ = ["Scheduler"]


@dataclass(frozen=True)
class _StepInFlight:
    id: int
    queue: ModelQueue
    jobs: tuple[Job, ...]  # one for each entry
    num_tokens: int  # that each entry computes


@dataclass(frozen=True)
class _TransferInFlight:
    id: int
    model: str


@dataclass(frozen=True)
class _Barrier:
    """Models in the way of a waiting request: they admit nothing younger than it."""

    models: frozenset[str]
    order: tuple[int, int]


class Scheduler:
    """Decides; see the module's text for the policy and `events.py` for the vocabulary.

    Args:
        models: The models of the bundle.
        budget: Bytes that each tier may hold.
        tiered: Whether ddr is a tier between disk and hbm.
        queue_timeout_seconds: How long a request may wait for its first step; None for ever.
        decode_steps: Most tokens that one decode action draws for each sequence.

    Raises:
        DoesNotFitError: if some model can never be hot within the budget.
    """

    def __init__(
        self,
        models: Sequence[ModelEntry],
        budget: TierBudget,
        *,
        tiered: bool,
        queue_timeout_seconds: float | None = None,
        decode_steps: int = 1,
    ) -> None:
        self.residency = ResidencyManager(models, budget, tiered=tiered)
        self.queues = {entry.name: ModelQueue(entry, _pool(entry)) for entry in models}
        self._tiered = tiered
        self._queue_timeout_seconds = queue_timeout_seconds
        self._decode_steps = decode_steps
        self._jobs: dict[int, Job] = {}
        self._step: _StepInFlight | None = None
        self._transfer: _TransferInFlight | None = None
        self._barrier: _Barrier | None = None  # kept until something moves, or another request comes to be first
        self._broken: set[str] = set()  # models whose last transfer failed; tried again when asked for
        self._serial = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        return not self._jobs and self._step is None and self._transfer is None

    @property
    def is_settled(self) -> bool:
        """Whether all that can be brought closer before the first request has been."""
        return self._transfer is None and self._next_pinned() is None and self._next_prefetch() is None

    def start(self, now: float) -> list[Action]:
        """Returns the first actions: pinned models are made hot, the others warm as far as there is room."""
        return self._advance(now)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Takes an event in and returns the actions that follow from it, in the order to carry them out."""
        actions: list[Action] = []
        match event:
            case Arrival(request):
                actions += self._arrive(request, now)
            case Cancel(request_id):
                self._cancel(request_id)
            case StepDone(step_id, tokens):
                actions += self._step_done(step_id, tokens, now)
            case StepFailed(step_id, message):
                actions += self._step_failed(step_id, message)
            case TransferDone(transfer_id):
                self._transfer_done(transfer_id, now)
            case TransferFailed(transfer_id, message):
                actions += self._transfer_failed(transfer_id, message)
            case TransferProgressed():
                pass  # for those who watch: a model is used when it has arrived whole
            case Timer(timer_id):
                actions += self._timed_out(timer_id)
        return actions + self._advance(now)

    # Events

    def _arrive(self, request: Request, now: float) -> Iterator[Action]:
        self._serial += 1
        order = (request.priority, self._serial)
        work = request.work
        job = (
            GenerateJob.of(request, work, order, now)
            if isinstance(work, GenerateWork)
            else EmbedJob.of(request, work, order, now)
        )
        self._jobs[request.id] = job
        self._wait(job)
        if not self.residency.is_hot(request.model):
            job.cold_since = now
        if self._queue_timeout_seconds is not None:
            yield SetTimer(request.id, now + self._queue_timeout_seconds)

    def _cancel(self, request_id: int) -> None:
        job = self._jobs.get(request_id)
        if job is None:
            return
        if self._step is not None and job in self._step.jobs:
            job.is_cancelled = True
        else:
            self._forget(job)

    def _timed_out(self, request_id: int) -> Iterator[Action]:
        job = self._jobs.get(request_id)
        if job is None or job.started_at is not None:
            return
        self._forget(job)
        waited = f"waited {self._queue_timeout_seconds} s for its first step"
        yield Reply(job.id, failure="timeout", message=f"the request {waited}, the longest this server lets one wait")

    def _step_done(self, step_id: int, tokens: tuple[tuple[int, ...], ...], now: float) -> Iterator[Action]:
        step = self._take_step(step_id)
        self.residency.touch(step.queue.entry.name, now)
        for index, job in enumerate(step.jobs):
            if isinstance(job, EmbedJob):
                job.num_done += 1
            if job.id not in self._jobs:
                continue  # cancelled, seen already as the job of an earlier entry
            if job.is_cancelled:
                self._forget(job)
            elif isinstance(job, GenerateJob):
                job.num_computed += step.num_tokens + max(0, len(tokens[index]) - 1)
                yield from self._generated(step.queue, job, tokens[index])
            elif isinstance(job, EmbedJob) and job.num_done == len(job.sequences):
                self._forget(job)
                yield Reply(job.id, finish_reason="stop", timing=job.timing())

    def _generated(self, queue: ModelQueue, job: GenerateJob, drawn: tuple[int, ...]) -> Iterator[Action]:
        fresh: list[int] = []
        reason: FinishReason | None = None
        sampling = _work(job).sampling
        for token in drawn:
            if sampling.is_end(token, queue.entry.eos_token_ids):
                reason = "stop"
                break
            fresh.append(token)
            job.tokens.append(token)
            if job.num_generated == job.max_tokens:
                reason = "length"  # unless an end follows at once: no step draws more than that
        if reason is not None:
            self._forget(job)
            yield Reply(job.id, tuple(fresh), reason, timing=job.timing())
        elif fresh:
            yield Reply(job.id, tuple(fresh), timing=job.timing())

    def _step_failed(self, step_id: int, message: str) -> Iterator[Action]:
        step = self._take_step(step_id)
        for job in dict.fromkeys(step.jobs):
            if not job.is_cancelled:
                yield Reply(job.id, failure="failed", message=message)
            self._forget(job)
        for job in list(step.queue.running):  # a step that failed may have taken the model's KV pool with it
            self._preempt(step.queue, job)

    def _transfer_done(self, transfer_id: int, now: float) -> None:
        model = self._take_transfer(transfer_id)
        self.residency.finish(model, now)
        self._broken.discard(model)
        if self.residency.is_hot(model):
            for job in self.queues[model].waiting:
                job.became_hot(now)

    def _transfer_failed(self, transfer_id: int, message: str) -> Iterator[Action]:
        model = self._take_transfer(transfer_id)
        self.residency.fail(model)
        self._broken.add(model)
        for job in list(self.queues[model].waiting):
            self._forget(job)
            yield Reply(job.id, failure="failed", message=message)

    # Decisions

    def _advance(self, now: float) -> list[Action]:
        barrier, actions = self._plan_transfer(now)
        for queue in self.queues.values():
            self._admit(queue, barrier)
        if self._step is None:
            actions += self._plan_step(now)
        return actions

    def _plan_transfer(self, now: float) -> tuple[_Barrier | None, list[Action]]:
        """Decides what moves next; a barrier comes back if models in the way have to finish first."""
        if self._transfer is not None:
            return None, []
        pinned = self._next_pinned()
        actions = [] if pinned is None else self._move(pinned, self._is_unused, now)
        wanted = self._first_held()
        if not actions and wanted is not None:
            actions = self._move(wanted.request.model, lambda name: self._may_go_for(wanted, name), now)
            if not actions:
                return self._barrier_for(wanted), []
        prefetch = self._next_prefetch()
        if not actions and prefetch is not None:
            actions = self._move(prefetch, self._is_unused, now)
        return None, actions

    def _barrier_for(self, wanted: Job) -> _Barrier:
        """Returns the barrier that makes room in hbm for a held request, least recently used models first."""
        if self._barrier is None or self._barrier.order != wanted.order:
            in_the_way = self.residency.victims(wanted.request.model, "hbm", lambda _: True)
            self._barrier = _Barrier(frozenset(in_the_way or ()), wanted.order)
        return self._barrier

    def _first_held(self) -> Job | None:
        held = (q.waiting[0] for name, q in self.queues.items() if q.waiting and not self.residency.is_hot(name))
        return min(held, key=lambda job: job.order, default=None)

    def _next_pinned(self) -> str | None:
        """Returns a model that isn't in the tier that it is pinned to; those of hbm first."""
        hbm = (n for n, q in self.queues.items() if q.entry.pin == "hbm" and not self.residency.is_hot(n))
        ddr = (n for n, q in self.queues.items() if q.entry.pin == "ddr" and self.residency.residency(n) == "cold")
        missing = (*hbm, *(ddr if self._tiered else ()))
        return next((name for name in missing if name not in self._broken), None)

    def _next_prefetch(self) -> str | None:
        """Returns a cold model that ddr has room for."""
        return next(
            (
                name
                for name in (self.queues if self._tiered else ())
                if self.residency.residency(name) == "cold"
                and name not in self._broken
                and self.residency.has_room(name, "ddr")
            ),
            None,
        )

    def _is_unused(self, name: str) -> bool:
        """Whether nobody asks for a model."""
        queue = self.queues[name]
        return not queue.is_busy and not queue.waiting

    def _may_go_for(self, wanted: Job, name: str) -> bool:
        """Whether a model neither runs nor has a request that is older than `wanted`; a copy in ddr may always go."""
        if self.residency.next_hop(wanted.request.model)[1] == "ddr":
            return True
        queue = self.queues[name]
        return not queue.is_busy and not (queue.waiting and queue.waiting[0].order < wanted.order)

    def _move(self, model: str, may_evict: Callable[[str], bool], now: float) -> list[Action]:
        """Starts a model's next transfer; there are no actions if what may be evicted leaves too little room."""
        source, destination = self.residency.next_hop(model)
        victims = self.residency.victims(model, destination, may_evict)
        if victims is None:
            return []
        for victim in victims:
            self._evict(victim, destination, now)
        self._serial += 1
        self._transfer, self._barrier = _TransferInFlight(self._serial, model), None
        num_bytes = self.residency.begin(model, destination)
        evictions = [Evict(victim, destination) for victim in victims]
        return [*evictions, Transfer(self._serial, model, source, destination, num_bytes)]

    def _evict(self, model: str, tier: TierName, now: float) -> None:
        self.residency.evict(model, tier)
        if tier == "hbm":
            for job in self.queues[model].waiting:
                job.became_cold(now)

    def _admit(self, queue: ModelQueue, barrier: _Barrier | None) -> None:
        name = queue.entry.name
        if not self.residency.is_hot(name):
            return
        is_barred = barrier is not None and name in barrier.models
        while queue.waiting:
            job = queue.waiting[0]
            if is_barred and barrier is not None and job.order > barrier.order:
                return
            if isinstance(job, EmbedJob):
                bisect.insort(queue.embedding, job, key=_order)
            elif isinstance(job, GenerateJob) and not self._give_blocks(queue, job):
                return
            queue.waiting.pop(0)

    def _give_blocks(self, queue: ModelQueue, job: GenerateJob) -> bool:
        assert queue.pool is not None, queue.entry.name
        if len(queue.running) == queue.entry.batch or not queue.pool.extend(job.blocks, len(job.tokens)):
            return False
        queue.running.append(job)
        return True

    def _plan_step(self, now: float) -> list[Action]:
        ready = [queue for name, queue in self.queues.items() if queue.has_work and self.residency.is_hot(name)]
        if not ready:
            return []
        queue = min(ready, key=lambda q: q.last_step_id)
        if queue.embedding:
            return [self._embed(queue, now)]
        return [self._generate(queue, now)]

    def _generate(self, queue: ModelQueue, now: float) -> Prefill | Decode:
        decoding = [job for job in queue.running if job.is_decoding]
        is_turn = queue.last_phase == "prefill" or len(decoding) == len(queue.running)
        ready = self._with_room(queue, decoding) if is_turn else []
        if ready:
            return self._decode(queue, ready, now)
        # Where all that decoded were preempted, an older prompt has their blocks: it is still there.
        return self._prefill(queue, min((job for job in queue.running if not job.is_decoding), key=_order), now)

    def _embed(self, queue: ModelQueue, now: float) -> Embed:
        chosen: list[tuple[EmbedJob, int]] = []
        configuration, longest = queue.longest("embed"), 0
        for job, index in _pending(queue.embedding):
            longest = max(longest, len(job.sequences[index]))
            larger = queue.smallest("embed", batch=len(chosen) + 1, new_tokens=longest)
            if larger is None:
                break
            configuration = larger
            chosen.append((job, index))
        step_id = self._issue(queue, [job for job, _ in chosen], "embed", 0, now)
        for job, _ in chosen:
            job.num_issued += 1
        entries = tuple(EmbedEntry(job.id, index, job.sequences[index]) for job, index in chosen)
        return Embed(step_id, queue.entry.name, configuration, entries)

    def _prefill(self, queue: ModelQueue, job: GenerateJob, now: float) -> Prefill:
        configuration = queue.smallest("prefill", new_tokens=job.num_pending) or queue.longest("prefill")
        num_tokens = min(job.num_pending, configuration.new_tokens)
        entry = _entry(job, num_tokens, draws=num_tokens == job.num_pending)
        step_id = self._issue(queue, [job], "prefill", num_tokens, now)
        return Prefill(step_id, queue.entry.name, configuration, (entry,))

    def _decode(self, queue: ModelQueue, jobs: list[GenerateJob], now: float) -> Decode:
        assert queue.pool is not None, queue.entry.name
        remaining = min(job.max_tokens - job.num_generated for job in jobs)
        room = min(len(job.blocks) * queue.pool.block_tokens - job.num_computed for job in jobs)
        configuration = queue.smallest("decode", batch=len(jobs)) or queue.longest("decode")
        entries = tuple(_entry(job, 1, draws=True) for job in jobs)
        step_id = self._issue(queue, jobs, "decode", 1, now)
        max_steps = min(self._decode_steps, remaining, room)
        return Decode(step_id, queue.entry.name, configuration, entries, max_steps)

    def _with_room(self, queue: ModelQueue, decoding: list[GenerateJob]) -> list[GenerateJob]:
        """Returns the decoding jobs with blocks for their next token; the youngest give theirs back if need be."""
        assert queue.pool is not None, queue.entry.name
        for job in sorted(decoding, key=_order):
            while job in queue.running and not queue.pool.extend(job.blocks, len(job.tokens)):
                self._preempt(queue, max(queue.running, key=_order))
        return [job for job in decoding if job in queue.running]

    def _preempt(self, queue: ModelQueue, job: GenerateJob) -> None:
        self._leave(job)
        job.num_computed = 0
        self._wait(job)

    # Book-keeping

    def _issue(self, queue: ModelQueue, jobs: Sequence[Job], phase: Phase, num_tokens: int, now: float) -> int:
        self._serial += 1
        queue.last_step_id, queue.last_phase = self._serial, phase
        for job in jobs:
            job.started_at = now if job.started_at is None else job.started_at
        self._step = _StepInFlight(self._serial, queue, tuple(jobs), num_tokens)
        return self._serial

    def _take_step(self, step_id: int) -> _StepInFlight:
        step = self._step
        assert step is not None, f"step {step_id} ended and none was under way"
        assert step.id == step_id, f"step {step_id} ended and {step.id} was under way"
        self._step = None
        return step

    def _take_transfer(self, transfer_id: int) -> str:
        transfer = self._transfer
        assert transfer is not None, f"transfer {transfer_id} ended and none was under way"
        assert transfer.id == transfer_id, f"transfer {transfer_id} ended and {transfer.id} was under way"
        self._transfer = None
        return transfer.model

    def _wait(self, job: Job) -> None:
        bisect.insort(self.queues[job.request.model].waiting, job, key=_order)

    def _leave(self, job: Job) -> None:
        """Takes a job out of its model's lists and gives its blocks back."""
        queue = self.queues[job.request.model]
        for jobs in (queue.waiting, queue.running, queue.embedding):
            if job in jobs:
                jobs.remove(job)  # type: ignore[arg-type]
        if isinstance(job, GenerateJob) and queue.pool is not None:
            queue.pool.release(job.blocks)

    def _forget(self, job: Job) -> None:
        self._leave(job)
        del self._jobs[job.id]


def _pool(entry: ModelEntry) -> BlockPool | None:
    return None if entry.kv is None else BlockPool(entry.kv.num_blocks, entry.kv.block_tokens)


def _order(job: Job) -> tuple[int, int]:
    return job.order


def _pending(jobs: Sequence[EmbedJob]) -> Iterator[tuple[EmbedJob, int]]:
    """Yields the sequences that no step has been issued for, in order."""
    for job in jobs:
        for index in range(job.num_issued, len(job.sequences)):
            yield job, index


def _work(job: GenerateJob) -> GenerateWork:
    work = job.request.work
    assert isinstance(work, GenerateWork)
    return work


def _entry(job: GenerateJob, num_tokens: int, *, draws: bool) -> SequenceEntry:
    sampling = _work(job).sampling
    return SequenceEntry(
        request_id=job.id,
        tokens=tuple(job.tokens[job.num_computed : job.num_computed + num_tokens]),
        start=job.num_computed,
        blocks=tuple(job.blocks),
        sampling=sampling if draws else None,
        num_generated=job.num_generated,
        context=tuple(job.tokens) if draws and sampling.uses_context else (),
    )

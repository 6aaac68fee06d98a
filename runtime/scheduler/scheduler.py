"""The scheduler's front: events in, actions out. What it decides is decided by the parts that it asks.

- One step computes at a time and one transfer moves at a time; the two overlap.
- A request for a model that isn't hot is held, never refused; all requests for one missing model share one eviction
  and one transfer. A busy model is never evicted.
- A sequence refers to KV blocks for what it has computed or found in the cache. When the pool is empty, the youngest
  sequence gives its blocks back, saved in ddr or not, and goes on later: no token of it is lost or repeated, for draws
  depend on seed and position only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ...compiler.bundle.manifest import ModelEntry, Route, SpeculativePair, TierBudget
from ...compiler.target import Link
from ..events import (
    CHUNK_BYTES,
    Action,
    Arrival,
    Cancel,
    Check,
    Checked,
    EmbedWork,
    Event,
    GenerateWork,
    Reply,
    Request,
    Routed,
    RouteWork,
    SaveBlocks,
    SetTimer,
    StepDone,
    StepFailed,
    Timer,
    TransferCancelled,
    TransferDone,
    TransferFailed,
    TransferProgressed,
    new_tuple,
)
from ..foresight import Foresight
from ..jobs import EmbedJob, GenerateJob, LoadJob, UnloadJob, job_of
from ..model_queue import ModelQueue
from ..request import FinishReason
from ..residency import ResidencyManager
from ..routing import Router
from .admission import Admission
from .checks import Checks
from .copies import BlockCopies
from .costs import StateCosts
from .loads import Loads
from .moves import Moves
from .prefixes import index_blocks
from .speculation import Speculation
from .state import State, StepInFlight
from .steps import StepPlanner

__all__ = ["Scheduler"]


class Scheduler:
    """Decides; see `events.py` for the vocabulary.

    Args:
        models: The models of the bundle.
        budget: Bytes that each tier may hold.
        tiered: Whether ddr is a tier between disk and hbm.
        queue_timeout_seconds: How long a request may wait for its first step; None for ever.
        patience_seconds: For how long a request that needs a switch lets later ones of its class go first: 0 for the
            least latency, more for fewer switches.
        decode_steps: Most tokens that one decode action draws for each sequence, where nothing else is to be decided.
        prefill_tokens: Most tokens of a prompt's chunk while answers are being generated; None: as the programs have.
        workflows: Cycles of models that are asked for one after the other, by name or alias.
        routes: Names for models that can stand for each other.
        speculative: Models whose next tokens another one proposes.
        links: Of the target, for what a model costs to come back; None: bytes alone count.
        chunk_bytes: Of transfers.
        kv_bytes_per_s: Rate at which KV blocks are copied to ddr and back; None: they never are.

    Raises:
        DoesNotFitError: if some model can never be hot within the budget.
        ConfigurationError: if the patience is no time, or for ever.
    """

    def __init__(
        self,
        models: Sequence[ModelEntry],
        budget: TierBudget,
        *,
        tiered: bool,
        queue_timeout_seconds: float | None = None,
        patience_seconds: float = 0.0,
        decode_steps: int = 1,
        prefill_tokens: int | None = None,
        kv_bytes_per_s: float | None = None,
        workflows: Iterable[Sequence[str]] = (),
        routes: Mapping[str, Route] | None = None,
        speculative: Sequence[SpeculativePair] = (),
        links: Mapping[str, Link] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        rate = kv_bytes_per_s if tiered else None
        self.residency = ResidencyManager(models, budget, tiered=tiered)
        self.queues = {entry.name: ModelQueue.of(entry, kv_bytes_per_s=rate) for entry in models}
        self._queue_timeout_seconds = queue_timeout_seconds
        self._state = State(self.residency, self.queues)
        self._copies = BlockCopies(self._state)
        self.foresight = Foresight(self.queues, self.residency, workflows=workflows, links=links)
        self._speculation = Speculation(self._state, speculative)
        self._moves = Moves(
            self._state,
            self._copies,
            self.foresight,
            self._speculation.missing,
            patience_seconds=patience_seconds,
            chunk_bytes=chunk_bytes,
        )
        self._router = Router(models, routes or {})
        self._costs = StateCosts(self._state, self.foresight)
        self._loads = Loads(self._state, self._copies, self._moves)
        self._checks = Checks(self._state)
        self._admission = Admission(self._state)
        self._steps = StepPlanner(
            self._state, self._copies, self._speculation, decode_steps=decode_steps, prefill_tokens=prefill_tokens
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        return not self._state.jobs and self._state.step is None and self._state.transfer is None

    @property
    def is_settled(self) -> bool:
        """Whether all that can be brought closer before the first request has been."""
        return self._moves.is_settled

    def start(self, now: float) -> list[Action]:
        """Returns the first actions: pinned models are made hot, the others warm as far as there is room."""
        return self._advance(now)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Takes an event in and returns the actions that follow from it, in the order to carry them out."""
        actions: list[Action] = []
        match event:
            case StepDone(step_id, tokens):  # first, as most are
                actions += self._step_done(step_id, tokens)
            case Arrival(request):
                actions += self._arrive(request, now)
            case Cancel(request_id):
                self._cancel(request_id)
            case Check(request):
                actions += self._checks.ask(request)
            case Checked(model, message):
                actions += self._checks.judge(model, message)
            case StepFailed(step_id, message):
                actions += self._step_failed(step_id, message)
            case TransferDone(transfer_id):
                self._moves.arrived(self._take_transfer(transfer_id), now)
            case TransferFailed(transfer_id, message):
                actions += self._transfer_failed(transfer_id, message)
            case TransferProgressed(transfer_id, done_bytes):
                self._moves.progressed(transfer_id, done_bytes)
            case TransferCancelled(transfer_id):
                self._moves.cancelled(self._take_transfer(transfer_id))
            case Timer(timer_id):
                actions += self._timed_out(timer_id)
        return actions + self._advance(now)

    def _advance(self, now: float) -> list[Action]:
        actions = self._checks.make_way() + self._loads.plan(now)
        barrier, moves = self._moves.plan(now)
        actions += moves
        actions += self._checks.begin(now)
        for queue in [*self._state.open.values()]:
            actions += self._admission.admit(queue, barrier)
        if self._state.step is None:
            actions += self._steps.plan(now)
        return actions

    def _arrive(self, request: Request, now: float) -> Iterator[Action]:
        model = self._router.route(request, self.residency, self._costs)
        if isinstance(request.work, RouteWork):
            yield Routed(request.id, model)
            return
        if model != request.model:
            yield Routed(request.id, model)
            request = replace(request, model=model)
        is_asked = isinstance(request.work, GenerateWork | EmbedWork)
        if is_asked and (message := self._state.unhealthy.get(model)) is not None:
            yield self._checks.refuse(request, message)
            return
        job = job_of(request, (request.priority, self._state.next_id()), now)
        self._state.jobs[request.id] = job
        if isinstance(job, LoadJob | UnloadJob):
            self._loads.ask(job)
        if is_asked:
            self.foresight.observe(request, now)
        self._state.wait(job)
        self.queues[request.model].shares.join(request.client)
        if not self.residency.is_hot(request.model):
            job.cold_since = now
        if self._queue_timeout_seconds is not None:
            yield SetTimer(request.id, now + self._queue_timeout_seconds)

    def _cancel(self, request_id: int) -> None:
        job = self._state.jobs.get(request_id)
        if job is None:
            return
        if self._state.step is not None and job in self._state.step.jobs:
            job.is_cancelled = True
        else:
            self._state.forget(job)

    def _timed_out(self, request_id: int) -> Iterator[Action]:
        job = self._state.jobs.get(request_id)
        if job is None or job.started_at is not None:
            return
        if self._state.step is not None and job in self._state.step.jobs:
            return  # its blocks are being loaded: its turn has come
        self._state.forget(job)
        waited = f"waited {self._queue_timeout_seconds} s for its first step"
        yield Reply(job.id, failure="timeout", message=f"the request {waited}, the longest this server lets one wait")

    def _step_done(self, step_id: int, tokens: tuple[tuple[int, ...], ...]) -> list[Action]:
        step = self._take_step(step_id)
        if step.is_for_target:
            self._speculation.prefilled(step)
            return []
        if isinstance(step.copy, SaveBlocks):
            return []
        if step.copy is not None:
            self._loaded(step, len(step.copy.copies))
            return []
        return [*(self._embedded(step) if step.queue.pool is None else self._generated(step, tokens))]

    def _loaded(self, step: StepInFlight, num_blocks: int) -> None:
        (job,) = step.jobs
        assert isinstance(job, GenerateJob), job
        if job.is_cancelled:
            self._state.forget(job)
        else:
            self._copies.loaded(step.queue, job, num_blocks)

    def _embedded(self, step: StepInFlight) -> Iterator[Reply]:
        for job in step.jobs:
            assert isinstance(job, EmbedJob), job
            job.num_done += 1
            if job.id not in self._state.jobs:
                continue  # cancelled, seen already as the job of an earlier entry
            if job.is_cancelled:
                self._state.forget(job)
            elif job.num_done == len(job.sequences):
                self._state.forget(job)
                yield Reply(job.id, finish_reason="stop", timing=job.timing())

    def _generated(self, step: StepInFlight, tokens: tuple[tuple[int, ...], ...]) -> Iterator[Reply]:
        """Takes in what a step has computed and drawn for each job. Its loop is passed for every token there is."""
        queue, pool, shares = step.queue, step.queue.pool, step.queue.shares
        assert pool is not None, queue.entry.name
        block_tokens, ends, is_prefill = pool.block_tokens, queue.entry.eos_token_ids, queue.last_phase == "prefill"
        for index, (job, num_tokens, drawn) in enumerate(zip(step.jobs, step.num_tokens, tokens, strict=True)):
            assert isinstance(job, GenerateJob), job
            if job.is_cancelled:
                self._state.forget(job)
                continue
            fresh = job.sampling.before_end(drawn, ends)
            num_drawn, num_fresh = len(drawn), len(fresh)
            job.num_computed += num_tokens + (num_drawn - 1 if num_drawn else 0)
            if step.num_proposed:
                self._speculation.verified(step, index, job, num_drawn)
            job.tokens += fresh
            if job.num_computed // block_tokens > job.num_indexed:  # few tokens fill a block
                index_blocks(pool, job)
            if job.draft is not None:
                self._speculation.index(job)
            shares.charge(job.request.client, num_fresh)
            reason: FinishReason | None = None
            if num_fresh < num_drawn:
                reason = "stop"
            elif len(job.tokens) >= job.num_prompt + job.max_tokens:
                reason = "length"
            elif not fresh:
                continue  # of a prompt whose rest follows
            if reason is not None:
                self._state.forget(job)
            elif is_prefill:
                queue.advanced(job)
            yield new_tuple(Reply, (job.request.id, fresh, reason, None, "", job.last_timing or job.timing()))

    def _step_failed(self, step_id: int, message: str) -> Iterator[Action]:
        step = self._take_step(step_id)
        if isinstance(step.copy, SaveBlocks):
            yield self._copies.lost(step.copy)
        if not step.is_for_target:
            for job in dict.fromkeys(step.jobs):
                if not job.is_cancelled:
                    yield Reply(job.id, failure="failed", message=message)
                self._state.forget(job)
        if step.draft is not None:
            self._speculation.failed(step)
            self._lose_pool(self.queues[step.draft])
        self._lose_pool(step.queue)

    def _lose_pool(self, queue: ModelQueue) -> None:
        """Has what runs of a model begin anew: a step that failed may have taken its KV pool with it."""
        for job in self._state.drafted(queue.entry.name):
            self._state.leave_draft(job)
        if queue.pool is not None:
            queue.pool.forget()
        for job in queue.running:
            self._state.preempt(queue, job)

    def _transfer_failed(self, transfer_id: int, message: str) -> Iterator[Action]:
        model = self._take_transfer(transfer_id)
        self._moves.failed(model)
        for job in [job for job in self.queues[model].waiting if not isinstance(job, UnloadJob)]:
            self._state.forget(job)
            yield Reply(job.id, failure="failed", message=message)

    def _take_step(self, step_id: int) -> StepInFlight:
        step = self._state.step
        assert step is not None, f"step {step_id} ended and none was under way"
        assert step.id == step_id, f"step {step_id} ended and {step.id} was under way"
        self._state.step = None
        return step

    def _take_transfer(self, transfer_id: int) -> str:
        transfer = self._state.transfer
        assert transfer is not None, f"transfer {transfer_id} ended and none was under way"
        assert transfer.id == transfer_id, f"transfer {transfer_id} ended and {transfer.id} was under way"
        self._state.transfer = None
        return transfer.model

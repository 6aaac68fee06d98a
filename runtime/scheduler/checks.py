"""Checks of models: requests of the runtime itself, and what is known of a model's health from them.

A check runs as an ordinary sequence of its hot model, but only for as long as it is in nobody's way: it begins when no
request waits and no prompt is being computed, and ends, unanswered, when somebody waits for another model or the model
leaves hbm. So it holds no model, keeps none from being evicted, and is part of no answer's time but for the row that
it adds to steps. A model that failed its check answers nobody until it passes one.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..events import Action, Reply, Request
from ..jobs import Job, LoadJob, UnloadJob, job_of
from .state import State

__all__ = ["Checks"]

_LAST_CLASS = 2**62  # behind all requests: no client can ask for it


class Checks:
    """Begins and ends checks, and refuses what is asked of unhealthy models.

    Args:
        state: The scheduler's memory.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._pending: dict[str, Request] = {}  # by model
        self._begun: dict[str, Job] = {}  # likewise

    def ask(self, request: Request) -> Iterator[Action]:
        """Notes a check that has come in; an earlier one of the same model that has not begun gives way to it."""
        before = self._pending.pop(request.model, None)
        self._pending[request.model] = request
        if before is not None:
            yield Reply(before.id, failure="dropped")

    def make_way(self) -> list[Action]:
        """Ends checks that are in somebody's way."""
        if not self._begun:
            return []
        actions: list[Action] = []
        step = self._state.step
        is_wanted = any(queue.waiting and self._is_held(name) for name, queue in self._state.queues.items())
        for model, job in list(self._begun.items()):
            if not self._is_being_checked(model):
                del self._begun[model]
            elif step is not None and job in step.jobs:
                continue
            elif is_wanted or job in self._state.queues[model].waiting:  # preempted, it may not wait like a request
                actions.append(self._drop(model, job))
        return actions

    def begin(self, now: float) -> list[Action]:
        """Begins what can begin; admission follows. Ends what waits for a model that has left."""
        if not self._pending:
            return []
        gone = [model for model in self._pending if not self._state.residency.is_hot(model)]
        actions: list[Action] = [Reply(self._pending.pop(model).id, failure="dropped") for model in gone]
        model = next((model for model in self._pending if not self._is_being_checked(model)), None)
        if model is not None and self._is_quiet():
            request = self._pending.pop(model)
            job = self._begun[model] = job_of(request, (_LAST_CLASS, self._state.next_id()), now)
            self._state.jobs[job.id] = job
            self._state.queues[model].shares.join(request.client)
            self._state.wait(job)
        return actions

    def judge(self, model: str, message: str) -> Iterator[Action]:
        """Notes what a check has shown; what was asked of a model that is not healthy fails.

        Args:
            model: That was checked.
            message: What is wrong with it; "" if nothing is.
        """
        if not message:
            self._state.unhealthy.pop(model, None)
            return
        self._state.unhealthy[model] = message
        step, queue = self._state.step, self._state.queues[model]
        for job in [*queue.waiting, *queue.running, *queue.embedding]:
            if isinstance(job, LoadJob | UnloadJob) or job.is_cancelled:
                continue
            yield self.refuse(job.request, message)
            if step is not None and job in step.jobs:
                job.is_cancelled = True
            else:
                self._state.forget(job)

    @staticmethod
    def refuse(request: Request, message: str) -> Reply:
        """Returns the answer to a request for a model that is not healthy."""
        return Reply(request.id, failure="unhealthy", message=message)

    def _is_being_checked(self, model: str) -> bool:
        return model in self._begun and self._begun[model].id in self._state.jobs

    def _is_held(self, name: str) -> bool:
        """Whether those that wait in a model's queue wait for the model."""
        if not self._state.residency.is_hot(name):
            return True
        return any(isinstance(job, UnloadJob) for job in self._state.queues[name].waiting)

    def _is_quiet(self) -> bool:
        """Whether no request waits and none has a prompt, or sequences to embed, under way."""
        queues = self._state.queues.values()
        return not any(queue.waiting or queue.embedding or queue.prompts for queue in queues)

    def _drop(self, model: str, job: Job) -> Reply:
        del self._begun[model]
        self._state.forget(job)
        return Reply(job.id, failure="dropped")

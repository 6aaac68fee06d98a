"""What moves between the tiers: which model comes closer, and which ones make room for it.

If room has to be made, idle models go first, in the order that foresight says; if that is not enough, the models in
the way stop admitting requests younger than the one that waits, so that they become idle. Which ones these are is
settled once: chosen anew each time, steps in turn would change it, and none of them would ever run dry. While a request
has patience (`patience.py`), only those of later classes are stopped, and models leave for it that nobody asks for. A
model that leaves hbm has its cached KV blocks saved first. While nobody waits for a model, the next one is fetched that
somebody is about to ask for, and then those that ddr has room for. A transfer for nobody ends early when somebody waits
for another model, unless all but a chunk has arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from ..events import Action, CancelTransfer, DropBlocks, Evict, TierName, Transfer
from ..foresight import Foresight
from ..jobs import UnloadJob
from ..model_queue import ModelQueue
from ..workflow import Forecast
from .copies import BlockCopies
from .patience import Patience
from .state import Barrier, State, TransferInFlight

__all__ = ["Moves"]

_Situation: TypeAlias = tuple[list[Forecast], int, int, list[str]]  # forecasts, requests, moves, and unused models


class _Wanted(NamedTuple):
    """A model that a held request waits for, and after which order others let it go first."""

    order: tuple[int, float]
    model: str


class Moves:
    """Plans one transfer at a time.

    Args:
        state: The scheduler's memory.
        copies: Of KV blocks, which models that leave hbm need.
        foresight: Whom to evict first, and what to fetch before it is asked for.
        missing_drafts: Draft models that answers under way could use and that are not hot.
        patience_seconds: For how long a held request lets others go first.
        chunk_bytes: Of transfers.
    """

    def __init__(
        self,
        state: State,
        copies: BlockCopies,
        foresight: Foresight,
        missing_drafts: Callable[[], Iterable[str]],
        *,
        patience_seconds: float,
        chunk_bytes: int,
    ) -> None:
        self._state = state
        self._chunk_bytes = chunk_bytes
        self._foresight = foresight
        self._patience = Patience(state, foresight, patience_seconds)
        self._residency = state.residency
        self._copies = copies
        self._missing_drafts = missing_drafts
        self._pinned = {tier: [n for n, q in state.queues.items() if q.entry.pin == tier] for tier in ("hbm", "ddr")}
        self._barrier: Barrier | None = None  # kept until something moves, or another request comes to be first
        self._broken: set[str] = set()  # models whose last transfer failed; tried again when asked for
        self._unloaded: set[str] = set()  # models that were to go; they come back when asked for
        self._not_worth: _Situation | None = None  # in which nothing was worth fetching ahead

    @property
    def is_settled(self) -> bool:
        """Whether all that can be brought closer before the first request has been."""
        return self._state.transfer is None and self._next_pinned() is None and self._next_warmed() is None

    def plan(self, now: float) -> tuple[Barrier | None, list[Action]]:
        """Decides what moves next; a barrier comes back if models in the way have to finish first."""
        if self._state.transfer is not None:
            return None, self._give_way(self._state.transfer, now)
        if self._state.is_copying:
            return self._barrier, []
        if self._residency.are_all_hot:
            return None, []
        pinned, wanted = self._next_pinned(), self._first_held(now)
        if pinned is not None:
            actions = self._move(pinned, self._is_unused, now)
            if actions is not None:
                return None, actions
        if wanted is not None:
            return self._bring(wanted, now)
        return None, self._fetch_draft(now) or self._prefetch(now) or self._warm(now)

    def arrived(self, model: str, now: float) -> None:
        """Records that a transfer is done."""
        self._residency.finish(model, now)
        self._broken.discard(model)
        self._unloaded.discard(model)
        if self._residency.is_hot(model):
            for job in self._state.queues[model].waiting:
                job.became_hot(now)

    def progressed(self, transfer_id: int, done_bytes: int) -> None:
        """Records how far a transfer has come."""
        if self._state.transfer is not None and self._state.transfer.id == transfer_id:
            self._state.transfer.done_bytes = done_bytes

    def cancelled(self, model: str) -> None:
        """Records that a transfer has ended early because it was told to."""
        self._residency.fail(model)

    def failed(self, model: str) -> None:
        """Records that a transfer has failed."""
        self._residency.fail(model)
        self._broken.add(model)

    def unload(self, model: str, tier: TierName, now: float) -> list[Evict]:
        """Evicts an idle model from the tiers above one, and leaves it there until somebody asks for it."""
        self._unloaded.add(model)
        pin = self._state.queues[model].entry.pin
        held = self._residency.tiers_of(model)
        return [self._evict(model, name, now) for name in held if name != tier and name != pin]

    def _give_way(self, transfer: TransferInFlight, now: float) -> list[Action]:
        """Ends a transfer that nobody waits for, if a held request could have the link and the room at once."""
        wanted, queue = self._first_held(now), self._state.queues[transfer.model]
        is_for_nobody = queue.entry.pin is None and all(isinstance(job, UnloadJob) for job in queue.waiting)
        is_far = transfer.num_bytes - transfer.done_bytes > self._chunk_bytes
        if wanted is None or transfer.is_cancelled or not is_for_nobody or not is_far:
            return []
        destination = self._residency.next_hop(wanted.model)[1]
        if self._victims(wanted.model, destination, lambda name: self._may_go_for(wanted, name), now) is None:
            return []
        transfer.is_cancelled = True
        return [CancelTransfer(transfer.id)]

    def _bring(self, wanted: _Wanted, now: float) -> tuple[Barrier | None, list[Action]]:
        """Brings the model of a held request closer."""
        actions = self._move(wanted.model, lambda name: self._may_go_for(wanted, name), now)
        if actions is None:
            return self._barrier_for(wanted, now), []
        if self._state.transfer is None:  # those that go are idle now and must stay so until they are saved
            going = self._victims(wanted.model, "hbm", lambda name: self._may_go_for(wanted, name), now)
            self._barrier = Barrier(frozenset(going or ()), *wanted)
        return self._barrier, actions

    def _barrier_for(self, wanted: _Wanted, now: float) -> Barrier:
        """Returns the barrier that makes room in hbm for a held request; idle models first."""
        if self._barrier is None or (self._barrier.order, self._barrier.wanted) != wanted:
            self._barrier = Barrier(frozenset(self._in_the_way(wanted.model, now)), *wanted)
        return self._barrier

    def _in_the_way(self, model: str, now: float) -> list[str]:
        """Returns the hot models that have to leave for another one, busy or not."""
        return [name for name in self._victims(model, "hbm", lambda _: True, now) or () if self._residency.is_hot(name)]

    def _first_held(self, now: float) -> _Wanted | None:
        """Returns whom the first of the held requests waits for; in its class, those without patience go first."""
        is_hot = self._residency.is_hot
        waiting = [queue for queue in self._state.queues.values() if queue.waiting]
        held = [queue for queue in waiting if not is_hot(queue.entry.name)]
        held = [queue for queue in held if not isinstance(queue.waiting[0], UnloadJob)]
        turns = [(self._order(queue, now), queue.waiting[0].order, queue.entry.name) for queue in held]
        if not turns:
            return None
        order, _, model = min(turns)
        return _Wanted(order, model)

    def _order(self, queue: ModelQueue, now: float) -> tuple[int, float]:
        """Returns after which order others let those go first who wait for a model: with patience, none of a class."""
        first = queue.waiting[0].order
        if self._patience.has_ended(queue, lambda: self._in_the_way(queue.entry.name, now), now):
            return first
        return first[0], math.inf

    def _next_pinned(self) -> str | None:
        """Returns a model that isn't in the tier that it is pinned to; those of hbm first."""
        if not any(self._pinned.values()):  # asked at every event
            return None
        residency = self._residency
        hbm = (name for name in self._pinned["hbm"] if not residency.is_hot(name))
        ddr = (name for name in self._pinned["ddr"] if residency.residency(name) == "cold")
        missing = (*hbm, *(ddr if residency.is_tiered else ()))
        return next((name for name in missing if name not in self._broken), None)

    def _prefetch(self, now: float) -> list[Action]:
        """Brings the model closer that is about to be asked for, in the place of idle ones that are wanted later."""
        forecast = self._foresight.next_wanted(now)
        if (
            forecast is None
            or forecast.model in self._broken | self._unloaded
            or self._foresight.is_early(forecast, now)
            or self._not_worth == (situation := self._situation(now))
        ):
            return []
        model = forecast.model

        def may_evict(name: str) -> bool:
            return self._is_unused(name) and self._foresight.is_later(name, forecast, now)

        destination = self._residency.next_hop(model)[1]
        victims = self._victims(model, destination, may_evict, now)
        if victims is None or not self._foresight.is_worth(
            forecast, victims, self._residency.kept_segments(model, destination, victims)
        ):
            self._not_worth = situation
            return []
        return self._move(model, may_evict, now) or []

    def _situation(self, now: float) -> _Situation:
        """Returns what it depends on whether a model is worth fetching; with most steps that end it is as before."""
        unused = [name for name in self._state.queues if self._is_unused(name)]
        forecasts = self._foresight.look_ahead.forecasts(now)
        return forecasts, self._foresight.num_observed, self._residency.num_changes, unused

    def _warm(self, now: float) -> list[Action]:
        model = self._next_warmed()
        return [] if model is None else self._move(model, self._is_unused, now) or []

    def _next_warmed(self) -> str | None:
        """Returns a cold model that ddr has room for."""
        cold = self._residency.cold if self._residency.is_tiered else ()
        if not cold:
            return None
        away = self._broken | self._unloaded
        return next((name for name in cold if name not in away and self._residency.has_room(name, "ddr")), None)

    def _fetch_draft(self, now: float) -> list[Action]:
        """Brings the draft of a model that answers closer, where that takes no room from what anybody asks for."""
        for draft in self._missing_drafts():
            if draft not in self._broken | self._unloaded and (actions := self._move(draft, self._is_unused, now)):
                return actions
        return []

    def _is_unused(self, name: str) -> bool:
        """Whether nobody asks for a model."""
        queue = self._state.queues[name]
        is_asked_for = queue.is_busy or bool(queue.waiting)
        return not is_asked_for and not self._state.is_drafting(name) and not self._state.is_computing(name)

    def _may_go_for(self, wanted: _Wanted, name: str) -> bool:
        """Whether a model neither runs nor will for a request before `wanted`; what is not hot may always go."""
        if self._residency.next_hop(wanted.model)[1] == "ddr" or not self._residency.is_hot(name):
            return True
        queue = self._state.queues[name]
        is_before = bool(queue.waiting) and queue.waiting[0].order < wanted.order
        return not queue.is_busy and not is_before and not self._state.is_computing(name)

    def _victims(self, model: str, tier: TierName, may_evict: Callable[[str], bool], now: float) -> list[str] | None:
        if self._residency.has_room(model, tier):
            return []
        order = self._foresight.order(tier, may_evict, now)
        return self._residency.victims(model, tier, sorted(order, key=self._state.is_drafting))

    def _move(self, model: str, may_evict: Callable[[str], bool], now: float) -> list[Action] | None:
        """Starts a model's next transfer, or the copy that must come before it.

        Returns:
            None if what may be evicted leaves too little room; no actions if a step has to end first.
        """
        source, destination = self._residency.next_hop(model)
        victims = self._victims(model, destination, may_evict, now)
        if victims is None:
            return None
        unsaved = [queue for queue in map(self._state.queues.__getitem__, victims) if self._copies.has_to_save(queue)]
        if destination == "hbm" and unsaved:
            if self._state.step is not None:
                return []
            return self._copies.save_unused(unsaved[0]) or self._move(model, may_evict, now)
        kept = self._residency.kept_segments(model, destination, victims)
        evictions = [self._evict(victim, destination, now, num) for victim, num in kept.items()]
        self._barrier = None
        transfer_id = self._state.next_id()
        num_bytes = self._residency.begin(model, destination)
        self._state.transfer = TransferInFlight(transfer_id, model, num_bytes)
        dropped = self._residency.saved.trim(self._residency.room_for_saved())
        drops = [DropBlocks(dropped)] if dropped else []
        return [*evictions, *drops, Transfer(transfer_id, model, source, destination, num_bytes, self._chunk_bytes)]

    def _evict(self, model: str, tier: TierName, now: float, num_kept: int = 0) -> Evict:
        queue, was_hot = self._state.queues[model], self._residency.is_hot(model)
        self._residency.evict(model, tier, num_kept)
        if tier == "hbm" and was_hot:
            for job in queue.waiting:
                job.became_cold(now)
            for job in self._state.drafted(model):
                self._state.leave_draft(job)
            if queue.pool is not None:
                queue.pool.forget()
        return Evict(model, tier, num_kept)

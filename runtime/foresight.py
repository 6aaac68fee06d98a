"""What the stream of requests says about the models: whom to evict, and whom to fetch before anybody asks.

Joins the order of victims (`eviction.py`) with the look-ahead (`workflow.py`) and the costs of the links. What a model
costs to come back is what its next hops take; where no links are given, all are alike and only bytes count.

A model is fetched ahead if that gains more than it costs, in seconds: with its chance the stall of its transfer is
gained, and with the rest the link was taken for nothing and the victims have to come back. That they go is no cost if
the model does come, for then they would have had to go anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ..compiler.target import Link
from .events import Request, TierName
from .eviction import EvictionPolicy, Stake
from .model_queue import ModelQueue
from .residency import ResidencyManager
from .workflow import Forecast, LookAhead

__all__ = ["Foresight"]

_GOOD_TIME = 2.0  # times what a fetch takes


class Foresight:
    """Knows the models' requests, past and to come.

    Args:
        queues: Of each model, by name.
        residency: Where the models are.
        workflows: Declared cycles of models, by name or alias; one with a model that is not here is left out.
        links: Of the target, by `source->destination`; empty: each moves a byte in a second.
    """

    def __init__(
        self,
        queues: Mapping[str, ModelQueue],
        residency: ResidencyManager,
        *,
        workflows: Iterable[Sequence[str]] = (),
        links: Mapping[str, Link] | None = None,
    ) -> None:
        self._queues = queues
        self._residency = residency
        self._links = links or {}
        self._policy = EvictionPolicy(list(queues))
        names = {known: name for name, queue in queues.items() for known in (name, *queue.entry.aliases)}
        cycles = [[names[step] for step in steps] for steps in workflows if names.keys() >= set(steps)]
        self.look_ahead = LookAhead(cycles)  # may be replaced while nothing is under way
        self.num_observed = 0  # requests

    def observe(self, request: Request, now: float) -> None:
        """Takes note of a request that has come in."""
        self.num_observed += 1
        self._policy.observe(request.model, request.priority)
        self.look_ahead.observe(request.client, request.model, now)

    def order(self, tier: TierName, may_evict: Callable[[str], bool], now: float) -> list[str]:
        """Returns the models that may be evicted from a tier, in the order in which they should go.

        Those that are about to be asked for go after the others, those with requests after these, busy ones last.
        """
        steps = {forecast.model: forecast.steps for forecast in self.look_ahead.forecasts(now)}
        for name, queue in self._queues.items():
            if queue.is_busy or queue.waiting:
                steps[name] = -1 if queue.is_busy else 0
        return self._policy.order({name: self._stake(name, tier) for name in self._queues if may_evict(name)}, steps)

    def next_wanted(self, now: float) -> Forecast | None:
        """Returns the nearest model that is about to be asked for and is not hot."""
        if self._residency.are_all_hot:
            return None
        forecasts = self.look_ahead.forecasts(now)
        return next((forecast for forecast in forecasts if not self._residency.is_hot(forecast.model)), None)

    def is_later(self, name: str, forecast: Forecast, now: float) -> bool:
        """Whether a model is not about to be asked for, or only after another one."""
        steps = (other.steps for other in self.look_ahead.forecasts(now) if other.model == name)
        return all(number > forecast.steps for number in steps)

    def is_worth(self, forecast: Forecast, victims: Iterable[str], kept: Mapping[str, int] | None = None) -> bool:
        """Whether to fetch a model ahead in the place of others, which keep so many segments in hbm, or none."""
        gone = list(victims)
        # In the place of the model that was asked for last, it is for nothing too if that is asked for once more.
        chance = forecast.chance * (forecast.leave_chance if forecast.after in gone else 1.0)
        gained = self.reload_seconds(forecast.model)
        lost = gained + sum(self._lost_seconds(name, kept.get(name, 0) if kept else 0) for name in gone)
        return chance * gained > (1 - chance) * lost

    def is_early(self, forecast: Forecast, now: float) -> bool:
        """Whether to put off fetching a model: there will be decode steps to do that beside, in good time.

        A copy takes the memory's bandwidth from what is computed meanwhile. A first token waits for all of a prompt's
        steps, and would come late; of an answer's many steps, a few last longer.
        """
        queues = [queue for queue in self._queues.values() if queue.entry.kv is not None]
        if any(queue.answering for queue in queues):
            return False
        needed = _GOOD_TIME * self.reload_seconds(forecast.model)
        if forecast.at_seconds - now < needed:
            return False
        if any(queue.is_busy or queue.waiting for queue in queues):
            return True
        before = (other for other in self.look_ahead.forecasts(now) if other.steps < forecast.steps)
        return any(self._queues[f.model].entry.kv is not None and f.stay_seconds >= needed for f in before)

    def _lost_seconds(self, name: str, num_kept: int) -> float:
        """Returns how long a model takes to have what it has in hbm again, if it keeps so many segments of that."""
        missing = self._queues[name].entry.missing_bytes
        return self._way_seconds(name, missing[num_kept] - missing[self._residency.num_segments(name)])

    def _stake(self, name: str, tier: TierName) -> Stake:
        entry = self._queues[name].entry
        if tier == "hbm":  # by byte, a part of a model is worth what the whole is
            return Stake(entry.resident_bytes, self._way_seconds(name, entry.moved_bytes))
        return Stake(entry.moved_bytes, self._seconds(entry.moved_bytes, "disk", "ddr"))

    def reload_seconds(self, name: str) -> float:
        """Returns how long a model that is not in hbm takes to come there."""
        return self._way_seconds(name, self._residency.missing_bytes(name))

    def _way_seconds(self, name: str, num_bytes: int) -> float:
        """Returns how long so many bytes of a model's weights take to hbm; what is on disk comes to ddr whole."""
        source, destination = self._residency.next_hop(name)
        if destination == "hbm":
            return self._seconds(num_bytes, source, destination)
        moved_bytes = self._queues[name].entry.moved_bytes
        return self._seconds(moved_bytes, source, destination) + self._seconds(num_bytes, "ddr", "hbm")

    def _seconds(self, num_bytes: int, source: TierName, destination: TierName) -> float:
        link = self._links.get(f"{source}->{destination}")
        return num_bytes if link is None else link.latency_seconds + num_bytes / link.bandwidth_bytes_per_s

"""Which model is in which tier, and what that costs in bytes.

The charges are the plan's: a model in hbm costs its weights and its KV pool, and the co-resident models share one
workspace, the largest any of them needs, for one step runs at a time. A model in ddr costs its weights, and saved KV
blocks what weights leave. The budget is that of each device, and what is charged is the fullest one's bytes. It holds
at every moment: bytes are charged when a transfer begins, not when it ends.

Whom to evict first is the scheduler's to say (`foresight.py`). Weights are read-only, so evicting is dropping: the copy
below stays. What leaves hbm gives up no more segments of its weights than the newcomer needs, the last ones first; a
model that has some left there, and nothing else, is not hot, and gets the others when it comes back.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..compiler.bundle.manifest import ModelEntry, TierBudget
from ..compiler.bundle.placement import DeviceShare
from ..errors import DoesNotFitError
from .events import TierName
from .request import Residency
from .saved_blocks import SavedBlocks

__all__ = ["ResidencyManager", "check_budget", "ddr_bytes", "hbm_bytes"]


def hbm_bytes(models: Iterable[ModelEntry], rests: Iterable[tuple[ModelEntry, int]] = ()) -> int:
    """Returns the bytes that these models need together in hbm of the fullest device.

    On each device they are weights and KV pools, and one workspace that the models share.

    Args:
        models: That are hot.
        rests: Others, of which the first segments are there, and how many.
    """
    chosen, parts = list(models), list(rests)
    loads = [sum(bytes_ for _, bytes_ in _terms(chosen, device)) for device in _devices(chosen)]
    for model, num_segments in parts:
        held = model.segment_ends[num_segments]
        loads += [0] * (len(held) - len(loads))
        for device, num_bytes in enumerate(held):
            loads[device] += num_bytes
    return max(loads)


def ddr_bytes(models: Iterable[ModelEntry]) -> int:
    """Returns the bytes that the weights of these models need together in ddr of the fullest device."""
    chosen = list(models)
    return max(sum(share.weights_bytes for _, share in _on(chosen, device)) for device in _devices(chosen))


def check_budget(models: Sequence[ModelEntry], budget: TierBudget, *, tiered: bool) -> None:
    """Checks that every model can be hot beside the pinned ones, and that ddr holds those that must be there.

    Raises:
        DoesNotFitError: naming the first model that does not fit.
    """
    pinned = [model for model in models if model.pin == "hbm"]
    for model in [*pinned, *models]:
        together = list({entry.name: entry for entry in (*pinned, model)}.values())
        if hbm_bytes(together) > budget.hbm:
            raise _does_not_fit_hbm(model, together, budget.hbm)
    if not tiered:
        return
    lower = [model for model in models if model.pin == "ddr"]
    for model in models:
        together = list({entry.name: entry for entry in (*lower, model)}.values())
        demand = ddr_bytes(together)
        if demand > budget.ddr:
            terms = tuple(sorted(((m.name, m.moved_bytes) for m in together), key=lambda term: -term[1]))
            raise DoesNotFitError(
                f"model {model.name!r}", "ddr", demand, budget.ddr, terms, (f"raise the ddr budget to {demand} bytes",)
            )


def _devices(models: Sequence[ModelEntry]) -> range:
    return range(max((model.num_devices for model in models), default=1))


def _on(models: Sequence[ModelEntry], device: int) -> list[tuple[str, DeviceShare]]:
    """Returns the models that have a share of a device, by name."""
    return [(model.name, model.shares[device]) for model in models if device < model.num_devices]


def _terms(models: Sequence[ModelEntry], device: int) -> list[tuple[str, int]]:
    """Returns what a device's hbm is needed for."""
    shares = _on(models, device)
    terms = [(f"weights of {name}", share.weights_bytes) for name, share in shares]
    terms += [(f"KV of {name}", share.kv_bytes) for name, share in shares if share.kv_bytes]
    return [*terms, ("workspace", max((share.workspace_bytes for _, share in shares), default=0))]


def _does_not_fit_hbm(model: ModelEntry, together: Sequence[ModelEntry], limit_bytes: int) -> DoesNotFitError:
    demand = hbm_bytes(together)
    fullest = max(_devices(together), key=lambda device: sum(bytes_ for _, bytes_ in _terms(together, device)))
    levers = [f"raise the hbm budget to {demand} bytes"]
    if model.kv is not None:
        levers.append(f"lower kv_tokens of {model.name}")
    if len(together) > 1:
        levers.append("unpin " + ", ".join(entry.name for entry in together if entry.name != model.name))
    subject = f"model {model.name!r}" + (" beside the pinned models" if len(together) > 1 else "")
    largest = tuple(sorted(_terms(together, fullest), key=lambda term: -term[1]))
    return DoesNotFitError(subject, "hbm", demand, limit_bytes, largest, tuple(levers))


@dataclass
class _Place:
    """Where one model is."""

    tiers: set[TierName] = field(default_factory=lambda: {"disk"})  # that hold it whole
    arriving: TierName | None = None  # that it is on its way to
    num_kept: int = 0  # segments in hbm, while it is not hot
    arrived_at: float = 0.0  # in the tier that it came to last


class ResidencyManager:
    """The tiers' books.

    Args:
        models: All models of the bundle.
        budget: Bytes that each tier may hold.
        tiered: Whether ddr is a tier between disk and hbm.
    """

    def __init__(self, models: Sequence[ModelEntry], budget: TierBudget, *, tiered: bool) -> None:
        check_budget(models, budget, tiered=tiered)
        self.budget = budget
        self._models = {model.name: model for model in models}
        self._places = {model.name: _Place() for model in models}
        self._cold: tuple[str, ...] | None = None  # None: to be found anew
        self._are_all_hot: bool | None = None  # likewise
        self.is_tiered = tiered
        self.saved = SavedBlocks()
        self.num_changes = 0  # of where models are, or are going

    def residency(self, model: str) -> Residency:
        """Returns whether a model is hot, warm or cold."""
        tiers = self._places[model].tiers
        return "hot" if "hbm" in tiers else "warm" if "ddr" in tiers else "cold"

    @property
    def cold(self) -> tuple[str, ...]:
        """The models that are on disk only, in the bundle's order."""
        if self._cold is None:  # asked for at every event, and changes with few of them
            self._cold = tuple(name for name in self._places if self.residency(name) == "cold")
        return self._cold

    @property
    def are_all_hot(self) -> bool:
        """Whether there is no model whose weights are not in hbm."""
        if self._are_all_hot is None:
            self._are_all_hot = all(map(self.is_hot, self._places))
        return self._are_all_hot

    @property
    def is_moving(self) -> bool:
        """Whether a model is on its way to a tier."""
        return any(place.arriving is not None for place in self._places.values())

    def is_hot(self, model: str) -> bool:
        """Whether the model's weights are in hbm, whole."""
        return "hbm" in self._places[model].tiers

    def tiers_of(self, model: str) -> tuple[TierName, ...]:
        """Returns the tiers above the disk that hold a model or segments of it, the fastest first."""
        above: tuple[TierName, ...] = ("hbm", "ddr")
        return tuple(tier for tier in above if self._holds(tier, model))

    def held_bytes(self, model: str, tier: TierName) -> int:
        """Returns the bytes that a model has in a tier that it is in, or will have when it has arrived."""
        entry = self._models[model]
        if tier != "hbm":
            return entry.moved_bytes
        return entry.resident_bytes if self._is_whole(model) else max(entry.segment_ends[self._places[model].num_kept])

    def num_segments(self, model: str) -> int:
        """Returns how many segments of a model's weights are in hbm."""
        return self._models[model].num_segments if self.is_hot(model) else self._places[model].num_kept

    def missing_bytes(self, model: str) -> int:
        """Returns the bytes that the fullest device has to get before a model is hot, or would if it were not."""
        return self._models[model].missing_bytes[self._places[model].num_kept]

    def used_bytes(self, tier: TierName) -> int:
        """Returns the bytes charged to a tier, those on their way included."""
        return self._charge(tier, self._holders(tier), None) + (self.saved.used_bytes if tier == "ddr" else 0)

    def room_for_saved(self) -> int:
        """Returns the bytes that the weights in ddr leave to saved KV blocks."""
        return self.budget.ddr - self._charge("ddr", self._holders("ddr"), None)

    def arrived_at(self, model: str) -> float:
        """Returns when the model came to the tier that it came to last."""
        return self._places[model].arrived_at

    def next_hop(self, model: str) -> tuple[TierName, TierName]:
        """Returns source and destination of the next transfer on the way to hbm."""
        if not self.is_tiered:
            return "disk", "hbm"
        return ("ddr", "hbm") if "ddr" in self._places[model].tiers else ("disk", "ddr")

    def has_room(self, model: str, tier: TierName) -> bool:
        """Whether the model fits into a tier beside what is there."""
        return self._fits(tier, self._holders(tier), model)

    def victims(self, model: str, tier: TierName, order: Iterable[str]) -> list[str] | None:
        """Returns the models to evict from a tier so that `model` fits, the first of an order first.

        Pinned models are never among them, nor those that are not there.

        Returns:
            An empty list if it fits already; None if it doesn't even without all that may be evicted.
        """
        holders = self._holders(tier) - {model}
        may_go = (name for name in order if name in holders and not self._is_pinned(name, tier))
        chosen: list[str] = []
        while not self._fits(tier, holders - set(chosen), model):
            victim = next(may_go, None)
            if victim is None:
                return None
            chosen.append(victim)
        for name in list(chosen):  # an early, small victim may have become superfluous
            rest = [other for other in chosen if other != name]
            if self._fits(tier, holders - set(rest), model):
                chosen = rest
        return chosen

    def kept_segments(self, model: str, tier: TierName, victims: Sequence[str]) -> dict[str, int]:
        """Returns how many segments each victim can keep when it leaves a tier for `model`, the last of them most."""
        kept = dict.fromkeys(victims, 0)
        if tier != "hbm" or not self.is_tiered:
            return kept
        staying = self._holders(tier) - {model, *victims}
        for name in reversed(victims):
            counts = range(1, self.num_segments(name) + 1)
            kept[name] = bisect.bisect_left(
                counts, True, key=lambda count: not self._fits(tier, staying, model, {**kept, name: count})
            )
        return kept

    def begin(self, model: str, tier: TierName) -> int:
        """Charges a transfer's destination and returns the bytes to be moved to the fullest device."""
        self._places[model].arriving = tier
        self.num_changes += 1
        return self.missing_bytes(model) if tier == "hbm" else self._models[model].moved_bytes

    def finish(self, model: str, now: float) -> None:
        """Records that a model has arrived where it was going."""
        place = self._places[model]
        assert place.arriving is not None, model
        place.tiers.add(place.arriving)
        self._cold = self._are_all_hot = None
        self.num_changes += 1
        if place.arriving == "hbm":
            place.num_kept = 0
        place.arriving = None
        place.arrived_at = now

    def fail(self, model: str) -> None:
        """Takes back the charge of a transfer that failed."""
        self._places[model].arriving = None
        self.num_changes += 1

    def evict(self, model: str, tier: TierName, num_kept: int = 0) -> None:
        """Takes back the charge of a model that is dropped from a tier, but for its first segments."""
        place = self._places[model]
        place.tiers.discard(tier)
        if tier == "hbm":
            place.num_kept = num_kept
        self._cold = self._are_all_hot = None
        self.num_changes += 1

    def _is_pinned(self, name: str, tier: TierName) -> bool:
        return self._models[name].pin == tier

    def _holds(self, tier: TierName, model: str) -> bool:
        place = self._places[model]
        return tier in place.tiers or (tier == "hbm" and place.num_kept > 0)

    def _holders(self, tier: TierName) -> set[str]:
        """Returns the models that are in a tier, have segments there or are on their way to it."""
        return {name for name, place in self._places.items() if place.arriving == tier or self._holds(tier, name)}

    def _fits(self, tier: TierName, names: set[str], coming: str, kept: Mapping[str, int] | None = None) -> bool:
        limit = self.budget.hbm if tier == "hbm" else self.budget.ddr
        return self._charge(tier, names, coming, kept or {}) <= limit

    def _charge(
        self, tier: TierName, names: set[str], coming: str | None, kept: Mapping[str, int] | None = None
    ) -> int:
        """Returns what a tier is charged for.

        Args:
            tier: Which.
            names: Of models in it, or on their way.
            coming: One more, whole.
            kept: More, of which so many segments are there.
        """
        if tier == "ddr":
            return ddr_bytes(self._models[name] for name in {*names, *([coming] if coming else [])})
        whole = [name for name in names if name == coming or self._is_whole(name)]
        rests = {name: self._places[name].num_kept for name in names if name != coming and not self._is_whole(name)}
        rests |= kept or {}
        if coming is not None and coming not in names:
            whole.append(coming)
        return hbm_bytes(
            [self._models[name] for name in whole], [(self._models[name], count) for name, count in rests.items()]
        )

    def _is_whole(self, name: str) -> bool:
        """Whether a model is hot, or has what it will need when it is."""
        place = self._places[name]
        return "hbm" in place.tiers or place.arriving == "hbm"

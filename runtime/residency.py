"""Which model is in which tier, and what that costs in bytes.

The charges are the plan's: a model in hbm costs its weights and its KV pool, and the co-resident models share one
workspace, the largest any of them needs, for one step runs at a time. A model in ddr costs its weights, and saved KV
blocks what weights leave. The budget is that of each device, and what is charged is the fullest one's bytes. It holds
at every moment: bytes are charged when a transfer begins, not when it ends.

Whom to evict first is the scheduler's to say (`foresight.py`). Weights are read-only, so evicting is dropping: the copy
below stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..compiler.bundle.manifest import ModelEntry, TierBudget
from ..compiler.bundle.placement import DeviceShare
from ..errors import DoesNotFitError
from .events import TierName
from .request import Residency
from .saved_blocks import SavedBlocks

__all__ = ["ResidencyManager", "check_budget", "ddr_bytes", "hbm_bytes"]


def hbm_bytes(models: Iterable[ModelEntry]) -> int:
    """Returns the bytes that these models need together in hbm of the fullest device.

    On each device they are weights and KV pools, and one workspace that the models share.
    """
    chosen = list(models)
    return max(sum(bytes_ for _, bytes_ in _terms(chosen, device)) for device in _devices(chosen))


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

    def is_hot(self, model: str) -> bool:
        """Whether the model's weights are in hbm, whole."""
        return "hbm" in self._places[model].tiers

    def tiers_of(self, model: str) -> tuple[TierName, ...]:
        """Returns the tiers above the disk that hold a model, the fastest first."""
        tiers = self._places[model].tiers
        above: tuple[TierName, ...] = ("hbm", "ddr")
        return tuple(tier for tier in above if tier in tiers)

    def used_bytes(self, tier: TierName) -> int:
        """Returns the bytes charged to a tier, those on their way included."""
        return self._charge(tier, self._holders(tier)) + (self.saved.used_bytes if tier == "ddr" else 0)

    def room_for_saved(self) -> int:
        """Returns the bytes that the weights in ddr leave to saved KV blocks."""
        return self.budget.ddr - self._charge("ddr", self._holders("ddr"))

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
        return self._fits(tier, {*self._holders(tier), model})

    def victims(self, model: str, tier: TierName, order: Iterable[str]) -> list[str] | None:
        """Returns the models to evict from a tier so that `model` fits, the first of an order first.

        Pinned models are never among them, nor those that are not there.

        Returns:
            An empty list if it fits already; None if it doesn't even without all that may be evicted.
        """
        holders = self._holders(tier)
        may_go = (name for name in order if name in holders and not self._is_pinned(name, tier))
        chosen: list[str] = []
        while not self._fits(tier, {*holders, model} - set(chosen)):
            victim = next(may_go, None)
            if victim is None:
                return None
            chosen.append(victim)
        for name in list(chosen):  # an early, small victim may have become superfluous
            rest = [other for other in chosen if other != name]
            if self._fits(tier, {*holders, model} - set(rest)):
                chosen = rest
        return chosen

    def begin(self, model: str, tier: TierName) -> int:
        """Charges a transfer's destination and returns the bytes to be moved to the fullest device."""
        self._places[model].arriving = tier
        return self._models[model].moved_bytes

    def finish(self, model: str, now: float) -> None:
        """Records that a model has arrived where it was going."""
        place = self._places[model]
        assert place.arriving is not None, model
        place.tiers.add(place.arriving)
        self._cold = self._are_all_hot = None
        place.arriving = None
        place.arrived_at = now

    def fail(self, model: str) -> None:
        """Takes back the charge of a transfer that failed."""
        self._places[model].arriving = None

    def evict(self, model: str, tier: TierName) -> None:
        """Takes back the charge of a model that is dropped from a tier."""
        self._places[model].tiers.remove(tier)
        self._cold = self._are_all_hot = None

    def _is_pinned(self, model: str, tier: TierName) -> bool:
        return self._models[model].pin == tier

    def _holders(self, tier: TierName) -> set[str]:
        return {name for name, place in self._places.items() if tier in place.tiers or place.arriving == tier}

    def _fits(self, tier: TierName, names: set[str]) -> bool:
        return self._charge(tier, names) <= (self.budget.hbm if tier == "hbm" else self.budget.ddr)

    def _charge(self, tier: TierName, names: set[str]) -> int:
        models = [self._models[name] for name in names]
        return hbm_bytes(models) if tier == "hbm" else ddr_bytes(models)

"""What a bundle may and may not do on its target: the legalizer behind `plait check`.

Comes in: an opened bundle, or the plan of a rack. Goes out: a `Legality`: errors (a model that can never be hot),
warnings (models that exclude each other, budgets beyond the machine), levers (what would make it fit), how full the
tiers get, and what every switch costs by the plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..compiler.bundle.manifest import Manifest, ModelEntry
from ..compiler.bundle.reader import Bundle
from ..compiler.rack.plan import RackPlan
from ..errors import DoesNotFitError
from ..runtime.residency import check_budget, ddr_bytes, hbm_bytes
from .output import format_bytes

__all__ = ["Legality", "TierUtilization", "legality", "rack_legality"]


@dataclass(frozen=True)
class TierUtilization:
    """Bytes of one tier, on the fullest device."""

    demand_bytes: int  # if every model is there at once
    pinned_bytes: int  # that never leave
    budget_bytes: int
    capacity_bytes: int  # of the target

    @property
    def utilization(self) -> float:
        """Demand relative to the budget; above 1, models take turns."""
        return self.demand_bytes / max(self.budget_bytes, 1)


@dataclass(frozen=True)
class Legality:
    """The verdict."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    utilization: dict[str, TierUtilization]  # by tier
    switch_seconds: dict[str, dict[str, float]]  # [hot][wanted]: 0 if both are hot at once
    levers: tuple[str, ...] = ()  # each would make what does not fit do so


def legality(bundle: Bundle) -> Legality:
    """Returns what a bundle may and may not do on the target that it was made for."""
    manifest = bundle.manifest
    refusals = list(_errors(manifest))
    return Legality(
        errors=tuple(dict.fromkeys(map(str, refusals))),
        levers=tuple(dict.fromkeys(lever for refusal in refusals for lever in refusal.levers)),
        warnings=tuple(_warnings(manifest)),
        utilization=_utilization(manifest),
        switch_seconds={
            hot.name: {wanted.name: _switch_seconds(manifest, hot, wanted) for wanted in manifest.models}
            for hot in manifest.models
        },
    )


def rack_legality(plan: RackPlan) -> Legality:
    """Returns what a bundle may and may not do on its rack."""
    return Legality(
        errors=tuple(str(replace(shortage, levers=()).error()) for shortage in plan.shortages),
        warnings=tuple(_rack_warnings(plan)),
        utilization=_rack_utilization(plan),
        switch_seconds=plan.switching.seconds,
        levers=tuple(dict.fromkeys(lever for shortage in plan.shortages for lever in shortage.levers)),
    )


def _rack_warnings(plan: RackPlan) -> Iterator[str]:
    for tier, budget in (("hbm", plan.budget.hbm), ("ddr", plan.budget.ddr)):
        usable = plan.target.tiers[tier].usable_bytes
        if budget > usable:
            yield (
                f"the {tier} budget of {format_bytes(budget)} is more than the {format_bytes(usable)} that models may "
                f"have of target {plan.target.name!r}"
            )
    if (share := plan.switching.share_of_time) >= 1:
        yield f"switches alone take {share:.0%} of the time: the traffic is more than can be served"
    if plan.residency.status == "feasible":
        yield f"who is hot was not decided to the optimum in time: {plan.residency.gap:.1%} may be gained"


def _rack_utilization(plan: RackPlan) -> dict[str, TierUtilization]:
    """Returns what is in each tier of the fullest device; nothing of a plan stays on the host."""
    devices = range(plan.target.num_devices)
    hbm, ddr = plan.target.tiers["hbm"], plan.target.tiers["ddr"]
    pinned = {tier: max(plan.held_bytes(tier, device, is_pinned=True) for device in devices) for tier in ("hbm", "ddr")}
    held = {tier: max(plan.held_bytes(tier, device) for device in devices) for tier in ("hbm", "ddr")}
    return {
        "ddr": TierUtilization(held["ddr"], pinned["ddr"], plan.budget.ddr, ddr.usable_bytes),
        "hbm_resident": TierUtilization(held["hbm"], pinned["hbm"], plan.budget.hbm, hbm.usable_bytes),
        "host": TierUtilization(0, 0, 0, 0),
    }


def _errors(manifest: Manifest) -> Iterator[DoesNotFitError]:
    """Yields what keeps each model from ever being hot; the same pinned models can be to blame several times."""
    pinned = [model for model in manifest.models if model.pin is not None]
    for model in manifest.models:
        others = [other for other in pinned if other.name != model.name]
        try:
            check_budget([*others, model], manifest.budget, tiered=manifest.target.kind == "tiered")
        except DoesNotFitError as error:
            yield error


def _warnings(manifest: Manifest) -> Iterator[str]:
    for tier, utilization in _utilization(manifest).items():
        if utilization.budget_bytes > utilization.capacity_bytes:
            yield (
                f"the {tier} budget of {format_bytes(utilization.budget_bytes)} is more than the "
                f"{format_bytes(utilization.capacity_bytes)} that target {manifest.target.name!r} has"
            )
    for one, other in itertools.combinations(manifest.models, 2):
        if not _fit_together(manifest, one, other):
            demand = hbm_bytes(_with_pinned(manifest, one, other))
            yield (
                f"{one.name!r} and {other.name!r} cannot be hot at once: with what is pinned they need "
                f"{format_bytes(demand)} of hbm, the budget is {format_bytes(manifest.budget.hbm)}"
            )
    if manifest.target.kind == "unified":
        for model in manifest.models:
            if model.pin == "ddr":
                yield f"{model.name!r} is pinned to ddr, which target {manifest.target.name!r} has not: no effect"
    elif (warm := ddr_bytes(manifest.models)) > manifest.budget.ddr:
        yield (
            f"ddr does not hold all models at once: they need {format_bytes(warm)}, the budget is "
            f"{format_bytes(manifest.budget.ddr)}; some switches read from disk"
        )


def _utilization(manifest: Manifest) -> dict[str, TierUtilization]:
    models, tiers = manifest.models, manifest.target.tiers
    pinned = [model for model in models if model.pin == "hbm"]
    found = {
        "hbm": TierUtilization(hbm_bytes(models), hbm_bytes(pinned), manifest.budget.hbm, tiers["hbm"].capacity_bytes)
    }
    if "ddr" in tiers:
        held = ddr_bytes([model for model in models if model.pin == "ddr"])
        found["ddr"] = TierUtilization(
            ddr_bytes(models), held, max(1, manifest.budget.ddr), tiers["ddr"].capacity_bytes
        )
    return found


def _switch_seconds(manifest: Manifest, hot: ModelEntry, wanted: ModelEntry) -> float:
    """Returns the seconds to make a model hot in place of another: nothing if there is room for both."""
    if hot.name == wanted.name or _fit_together(manifest, hot, wanted):
        return 0.0
    link = manifest.target.link("ddr" if manifest.target.kind == "tiered" else "disk", "hbm")
    return link.latency_seconds + wanted.moved_bytes / link.bandwidth_bytes_per_s


def _fit_together(manifest: Manifest, *models: ModelEntry) -> bool:
    return hbm_bytes(_with_pinned(manifest, *models)) <= manifest.budget.hbm


def _with_pinned(manifest: Manifest, *models: ModelEntry) -> list[ModelEntry]:
    pinned = [model for model in manifest.models if model.pin == "hbm"]
    return list({model.name: model for model in (*pinned, *models)}.values())

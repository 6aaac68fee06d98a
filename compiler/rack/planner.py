"""The bundle of a rack, planned: every model on its own, then all of them together.

    plan_model ──> place_windows ──> candidates ──> choose_hot ──> switching
    Planned        Window            Candidate      Residency      Switching      = RackPlan

Models of the same source and limits are planned once. What does not fit together is in the plan, as `shortages`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ...errors import ConfigurationError
from ..bundle.spec import BundleSpec, ModelSpec
from ..implementations import implementations_for
from ..target import Target, load_target
from .models import Planned, plan_model
from .plan import Budget, ModelPlan, RackPlan, Window
from .residency import Candidate, choose_hot
from .shortage import copies_that_fit, shortages
from .switching import switch_seconds, switching
from .traffic import Traffic, read_traffic
from .units import Unit, units_of
from .windows import place_windows

__all__ = ["is_planned_only", "plan_rack", "target_of"]


def target_of(spec: BundleSpec, base: Path) -> Target:
    """Returns the target of a bundle file; a path is relative to the file's directory.

    Raises:
        TargetError: if there is none.
    """
    return load_target(base / spec.target if spec.target.endswith(".toml") else spec.target)


def is_planned_only(target: Target) -> bool:
    """Whether programs cannot run on a target here, only plans be made for it."""
    return not implementations_for(target)


def plan_rack(
    spec: BundleSpec, *, base: Path = Path(), progress: Callable[[str], None] = lambda text: None
) -> RackPlan:
    """Plans a bundle for a rack.

    Args:
        spec: The bundle file's content.
        base: Directory that relative paths in it are relative to.
        progress: Told what is done.

    Raises:
        ConfigurationError: if the target is not one that is planned only, or a model or the traffic cannot be used.
        DoesNotFitError: if a model does not fit its devices even alone.
    """
    begin = time.monotonic()
    target = target_of(spec, base)
    if not is_planned_only(target) or "ddr" not in target.tiers:
        raise ConfigurationError(f"target {target.name!r} is none that is planned only, with hbm and ddr")
    hbm, ddr = target.tiers["hbm"].usable_bytes, target.tiers["ddr"].usable_bytes
    budget = Budget(hbm=int(spec.budget.hbm or hbm), ddr=int(spec.budget.ddr or ddr))
    traffic = read_traffic(spec, base)
    planned = _plan_models(spec, target, base, budget, progress)
    progress("placing copies")
    copies = {name: model.copies for name, model in spec.models.items()}
    pairs = [(pair.draft, pair.target) for pair in spec.speculative]
    held = {name: each.devices for name, each in planned.items()}
    windows = place_windows(held, copies, target.num_devices, pairs)
    models = tuple(
        _model_plan(name, spec.models[name], planned[name], windows[name], target, traffic) for name in spec.models
    )
    units = units_of(models, pairs, target.num_devices)
    candidates = tuple(candidate for unit in units for candidate in _candidates(unit, target, traffic))
    progress("choosing who is hot")
    residency = choose_hot(candidates, _room(units, budget.hbm, target.num_devices))
    fits, without = (copies_that_fit(models, limit, target.num_devices) for limit in (budget.ddr, _ddr(target)))
    return RackPlan(
        name=spec.bundle,
        target=target,
        budget=budget,
        models=models,
        residency=residency,
        switching=switching(models, candidates, residency, traffic.arrivals),
        traffic=traffic.kind,
        copies_that_fit=fits,
        copies_without_reserve=without,
        shortages=shortages(models, units, planned, budget, target),
        workflows=dict(spec.workflows),
        routes=dict(spec.routes),
        seconds=time.monotonic() - begin,
    )


def _ddr(target: Target) -> int:
    return target.tiers["ddr"].capacity_bytes


def _plan_models(
    spec: BundleSpec, target: Target, base: Path, budget: Budget, progress: Callable[[str], None]
) -> dict[str, Planned]:
    """Returns each model as planned; those that differ in name alone are planned once."""
    known: list[tuple[ModelSpec, Planned]] = []
    planned: dict[str, Planned] = {}
    plain = {"aliases": (), "pin": None, "sampling": None, "copies": 1, "routable": True}
    for name, model in spec.models.items():
        shapes = model.model_copy(update=plain)
        found = next((each for other, each in known if _is_same(other, shapes)), None)
        if found is None:
            found = plan_model(name, model, target, base=base, budget_bytes=budget.hbm, progress=progress)
            known.append((shapes, found))
        planned[name] = found
    return planned


def _is_same(one: ModelSpec, other: ModelSpec) -> bool:
    return one == other and one.model_fields_set == other.model_fields_set


def _model_plan(
    name: str,
    spec: ModelSpec,
    planned: Planned,
    windows: tuple[Window, ...],
    target: Target,
    traffic: Traffic,
) -> ModelPlan:
    return ModelPlan(
        name=name,
        source=spec.source,
        dtype=planned.dtype,
        weights=planned.weights,
        copies=spec.copies,
        aliases=spec.aliases,
        pin=spec.pin,
        is_routable=spec.routable,
        parameters=planned.sizes.parameters,
        mesh=planned.mesh.shape,
        num_stages=planned.num_stages,
        windows=windows,
        devices=planned.devices,
        steps=planned.steps,
        step_cost_seconds=planned.cost_seconds,
        step_lower_bound_seconds=planned.lower_bound_seconds,
        requests_per_s=sum(traffic.rate(name, copy) for copy in range(spec.copies)),
        switch_seconds=switch_seconds([each.weights_bytes for each in planned.devices], target),
        kv_tokens=planned.kv_tokens,
    )


def _room(units: Sequence[Unit], budget_bytes: int, num_devices: int) -> np.ndarray:
    """Returns what each device has for hot weights and the slot, beside the arena and pinned KV caches."""
    arena = np.zeros(num_devices, np.int64)
    pinned = np.zeros(num_devices, np.int64)
    for unit in units:
        arena = np.maximum(arena, unit.arena_bytes)
        pinned += unit.num_copies * unit.pinned_kv_bytes
    return budget_bytes - arena - pinned


def _candidates(unit: Unit, target: Target, traffic: Traffic) -> Iterator[Candidate]:
    """Yields a unit's copies, those together that are asked for as often."""
    by_rate: dict[float, list[int]] = defaultdict(list)
    is_told_apart = any(model == name for model, _ in traffic.of_copies for name in unit.models)
    if is_told_apart:
        for copy in unit.copies(_by_rate(unit, traffic)):
            by_rate[_rate(unit, traffic, copy)].append(copy)
    else:
        by_rate[_rate(unit, traffic, 0)] = list(range(unit.num_copies))
    for rate, copies in by_rate.items():
        yield Candidate(
            models=unit.models,
            windows=unit.windows,
            copies=tuple(copies) if is_told_apart else (),
            num_copies=len(copies),
            requests_per_s=rate,
            switch_seconds=switch_seconds(unit.weights_bytes, target),
            pin=unit.pin,
            weights_bytes=unit.weights_bytes,
        )


def _rate(unit: Unit, traffic: Traffic, copy: int) -> float:
    return sum(traffic.rate(model, copy) for model in unit.models)


def _by_rate(unit: Unit, traffic: Traffic) -> list[int]:
    """Returns all copies of a unit's model, whatever their window, the busiest first."""
    return sorted(range(unit.all_copies), key=lambda copy: (-_rate(unit, traffic, copy), copy))

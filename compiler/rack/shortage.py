"""What of a bundle does not fit a rack, by how much, and what would make it fit.

Every lever that is named was held against the numbers: by it alone the tier holds what it has to, if a model in fewer
bits divides as it does now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...models.config import DecoderConfig
from ..subject import model_sizes, with_weights
from ..target import Target
from ..text import format_bytes
from .models import Planned
from .plan import Budget, ModelPlan, Shortage
from .units import Unit

__all__ = ["copies_that_fit", "ddr_bytes", "shortages"]

_FEW_BITS = "q4_0"
_NUM_LARGEST = 5  # terms of a report


def ddr_bytes(models: Sequence[ModelPlan], num_devices: int) -> np.ndarray:
    """Returns the bytes of weights that DDR holds on each device: int64 [devices]."""
    load = np.zeros(num_devices, np.int64)
    for model in models:
        part = np.array([held.weights_bytes for held in model.devices], np.int64)
        for window in model.windows:
            load[window.first_device : window.first_device + len(part)] += window.num_copies * part
    return load


def copies_that_fit(models: Sequence[ModelPlan], limit_bytes: int, num_devices: int) -> dict[str, int]:
    """Returns how many copies of each model DDR holds, in all windows that there are, all others as they are."""
    counts: dict[str, int] = {}
    for model in models:
        left = limit_bytes - ddr_bytes([other for other in models if other is not model], num_devices)
        part = np.array([max(held.weights_bytes, 1) for held in model.devices], np.int64)
        firsts = range(0, num_devices - len(part) + 1, len(part))
        counts[model.name] = sum(max(0, int((left[first : first + len(part)] // part).min())) for first in firsts)
    return counts


def shortages(
    models: Sequence[ModelPlan],
    units: Sequence[Unit],
    planned: Mapping[str, Planned],
    budget: Budget,
    target: Target,
) -> tuple[Shortage, ...]:
    """Returns what does not fit: DDR as a whole, then the models that can never be hot."""
    found = [_ddr_shortage(models, planned, budget, target), *_hbm_shortages(units, planned, budget, target)]
    return tuple(shortage for shortage in found if shortage is not None)


def _ddr_shortage(
    models: Sequence[ModelPlan], planned: Mapping[str, Planned], budget: Budget, target: Target
) -> Shortage | None:
    load = ddr_bytes(models, target.num_devices)
    device = int(load.argmax())
    if load[device] <= budget.ddr:
        return None
    terms = [(_count(model), int(ddr_bytes([model], target.num_devices)[device])) for model in models]
    return Shortage(
        subject=f"each device's part of the weights of all {sum(model.copies for model in models)} models",
        models=tuple(model.name for model in _left_out(models, budget.ddr, target.num_devices)),
        tier="ddr",
        device=device,
        demand_bytes=int(load[device]),
        limit_bytes=budget.ddr,
        largest_terms=tuple(sorted(terms, key=lambda term: -term[1]))[:_NUM_LARGEST],
        levers=tuple(_ddr_levers(models, planned, budget, target)),
    )


def _count(model: ModelPlan) -> str:
    return model.name if model.copies == 1 else f"{model.copies} copies of {model.name}"


def _fits(models: Sequence[ModelPlan], limit_bytes: int, num_devices: int) -> bool:
    return bool((ddr_bytes(models, num_devices) <= limit_bytes).all())


def _left_out(models: Sequence[ModelPlan], limit_bytes: int, num_devices: int) -> list[ModelPlan]:
    """Returns the fewest models whose absence suffices, by size: the smallest that does alone, or the largest ones."""
    by_size = sorted(models, key=lambda model: ddr_bytes([model], num_devices).max())
    for model in by_size:
        if _fits([other for other in models if other is not model], limit_bytes, num_devices):
            return [model]
    left = list(by_size)
    while left and not _fits(left, limit_bytes, num_devices):
        left.pop()
    return by_size[len(left) :]


def _ddr_levers(
    models: Sequence[ModelPlan], planned: Mapping[str, Planned], budget: Budget, target: Target
) -> Iterator[str]:
    num_devices, usable = target.num_devices, target.tiers["ddr"].usable_bytes
    demand = int(ddr_bytes(models, num_devices).max())
    if demand <= usable:
        yield f"raise the ddr budget to {format_bytes(demand)} a device, the target has {format_bytes(usable)}"
    fits = copies_that_fit(models, budget.ddr, num_devices)
    for model in models:
        if 0 < fits[model.name] < model.copies:
            yield f"keep {fits[model.name]} of the {model.copies} copies of {model.name!r}"
    if smaller := _in_few_bits(models, planned, budget.ddr, num_devices):
        yield f"store {_listed(smaller)} in fewer bits (`weights: {_FEW_BITS}`)"
    left_out = [model.name for model in _left_out(models, budget.ddr, num_devices)]
    if len(left_out) < len(models):
        yield f"leave out {_listed(left_out)}"
    if all(model.num_devices == num_devices for model in models):
        yield f"take a target of {-(-demand * num_devices // budget.ddr)} such devices or more"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)


def _in_few_bits(
    models: Sequence[ModelPlan], planned: Mapping[str, Planned], limit_bytes: int, num_devices: int
) -> list[str]:
    """Returns the models, largest first, that have to be stored in few bits for all to fit; none if that is no help."""
    load = ddr_bytes(models, num_devices).astype(float)
    chosen: list[str] = []
    for model in sorted(models, key=lambda model: -ddr_bytes([model], num_devices).max()):
        ratio = _few_bits_ratio(planned[model.name])
        if ratio < 1.0:
            load -= (1.0 - ratio) * ddr_bytes([model], num_devices)
            chosen.append(model.name)
        if (load <= limit_bytes).all():
            return chosen
    return []


def _few_bits_ratio(planned: Planned) -> float:
    """Returns a model's bytes in few bits relative to what they are."""
    if not isinstance(planned.config, DecoderConfig):
        return 1.0
    small = model_sizes(with_weights(planned.config, _FEW_BITS), planned.dtype)
    return small.weight_bytes / planned.sizes.weight_bytes


def _hbm_shortages(
    units: Sequence[Unit], planned: Mapping[str, Planned], budget: Budget, target: Target
) -> Iterator[Shortage]:
    """Yields the units that cannot be hot beside what is pinned."""
    pinned = [unit for unit in units if unit.pin == "hbm"]
    held = sum((unit.num_copies * (unit.weights_bytes + unit.kv_bytes) for unit in pinned), np.zeros(1, np.int64))
    arena = np.max([unit.arena_bytes for unit in units], axis=0)
    seen: set[tuple[str, ...]] = set()
    for unit in units:
        demand = held + arena + (0 if unit.pin == "hbm" else unit.weights_bytes)
        device = int(np.argmax(np.where(unit.weights_bytes > 0, demand, 0)))
        if demand[device] <= budget.hbm or unit.models in seen:
            continue
        seen.add(unit.models)
        terms = [(f"pinned {' and '.join(each.models)}", _pinned_bytes(each, device)) for each in pinned]
        terms += [("workspace and KV of the busy model", int(arena[device]))]
        terms += (
            [] if unit.pin == "hbm" else [(f"weights of {' and '.join(unit.models)}", int(unit.weights_bytes[device]))]
        )
        yield Shortage(
            subject=f"{_listed(unit.models)} on each device" + (" beside what is pinned" if pinned else ""),
            models=unit.models,
            tier="hbm",
            device=device,
            demand_bytes=int(demand[device]),
            limit_bytes=budget.hbm,
            largest_terms=tuple(sorted(terms, key=lambda term: -term[1]))[:_NUM_LARGEST],
            levers=tuple(_hbm_levers(unit, units, planned, int(demand[device]), device, budget, target)),
        )


def _pinned_bytes(unit: Unit, device: int) -> int:
    return int(unit.num_copies * (unit.weights_bytes + unit.kv_bytes)[device])


def _hbm_levers(
    unit: Unit,
    units: Sequence[Unit],
    planned: Mapping[str, Planned],
    demand_bytes: int,
    device: int,
    budget: Budget,
    target: Target,
) -> Iterator[str]:
    usable = target.tiers["hbm"].usable_bytes
    short = demand_bytes - budget.hbm
    if demand_bytes <= usable:
        yield f"raise the hbm budget to {format_bytes(demand_bytes)} a device, the target has {format_bytes(usable)}"
    for other in units:  # the KV cache of what is unpinned goes to the arena
        if other.pin == "hbm" and other is not unit and other.num_copies * other.weights_bytes[device] >= short:
            yield f"unpin {_listed(other.models)}"
    busiest = max(units, key=lambda each: int(each.arena_bytes[device]))
    second = max((int(each.arena_bytes[device]) for each in units if each is not busiest), default=0)
    arena, kv = int(busiest.arena_bytes[device]), int(busiest.kv_bytes[device])
    if busiest.pin != "hbm" and arena - max(second, arena - kv) >= short:
        yield f"lower `kv_tokens`, `batch` or `sequence` of {_listed(busiest.models)}"
    weights = int(unit.weights_bytes[device]) * (unit.num_copies if unit.pin == "hbm" else 1)
    ratio = max(_few_bits_ratio(planned[name]) for name in unit.models)
    if (1.0 - ratio) * weights >= short:
        yield f"store {_listed(unit.models)} in fewer bits (`weights: {_FEW_BITS}`)"
    used = int(np.count_nonzero(unit.weights_bytes))
    if used < target.num_devices and weights - weights * used // target.num_devices >= short:
        yield f"divide {_listed(unit.models)} over all {target.num_devices} devices"
    yield f"leave out {_listed(unit.models)}"

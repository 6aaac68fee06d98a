"""The plan of a rack checked against its definition (`rack/plan.py`), device by device and copy by copy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ...errors import BundleIntegrityError
from ..rack.plan import DeviceBytes, Group, ModelPlan, RackPlan

__all__ = ["verify_rack_plan"]

_RELATIVE = 1e-9


def verify_rack_plan(plan: RackPlan) -> None:
    """Checks bytes, pins, counts, costs and times of a plan.

    Raises:
        BundleIntegrityError: naming what is wrong; a plan file can be damaged, and a planner can err.
    """
    for problem in _problems(plan):
        raise BundleIntegrityError(f"plan of {plan.name!r} contradicts itself: {problem}")


def _problems(plan: RackPlan) -> Iterator[str]:
    models = {model.name: model for model in plan.models}
    if len(models) != len(plan.models) or not models:
        yield "its models' names are not unique, or there are none"
        return
    if not {"hbm", "ddr"} <= set(plan.target.tiers) or "ddr->hbm" not in plan.target.links:
        yield "its target has not hbm, ddr and a link between them"
        return
    if not set(models) == set(plan.copies_that_fit) == set(plan.copies_without_reserve):
        yield "it does not say of each model how many copies fit"
    for model in plan.models:
        yield from _model_problems(plan, model)
    for group in plan.residency.groups:
        yield from _group_problems(plan, models, group)
    yield from _counting_problems(plan)
    yield from _cost_problems(plan)
    yield from _switching_problems(plan)
    short = {shortage.tier for shortage in plan.shortages}
    for device in range(plan.target.num_devices):
        if "ddr" not in short and (held := _ddr_bytes(plan, device)) > plan.budget.ddr:
            yield f"device {device} holds {held} bytes in ddr, the budget is {plan.budget.ddr}"
        if "hbm" not in short and (held := _hbm_bytes(plan, models, device)) > plan.budget.hbm:
            yield f"device {device} holds {held} bytes in hbm, the budget is {plan.budget.hbm}"
    for shortage in plan.shortages:
        if shortage.demand_bytes <= shortage.limit_bytes:
            yield f"{shortage.subject} is said not to fit, with {shortage.demand_bytes} of {shortage.limit_bytes} bytes"
        if shortage.tier == "ddr" and _ddr_bytes(plan, shortage.device) != shortage.demand_bytes:
            yield f"ddr of device {shortage.device} is not what {shortage.subject} is said to need"


def _model_problems(plan: RackPlan, model: ModelPlan) -> Iterator[str]:
    if model.num_devices != math.prod(model.mesh.values()) * model.num_stages:
        yield f"{model.name!r} has {model.num_devices} devices, its mesh another number"
        return
    if all(step.phase == "decode" for step in model.steps) or not model.windows:
        yield f"{model.name!r} has no step that answers a prompt, or is nowhere"
        return
    if sum(window.num_copies for window in model.windows) != model.copies:
        yield f"{model.name!r} has {model.copies} copies, its windows others"
    for window in model.windows:
        if window.first_device < 0 or window.first_device + model.num_devices > plan.target.num_devices:
            yield f"{model.name!r} goes beyond the devices of the target"
    if any(min(held.weights_bytes, held.kv_bytes, held.workspace_bytes) < 0 for held in model.devices):
        yield f"{model.name!r} has negative bytes"
    if not _agree(model.switch_seconds, _switch_seconds(plan, [model])):
        yield f"a switch to {model.name!r} does not take {model.switch_seconds} s over the links of its target"


def _group_problems(plan: RackPlan, models: Mapping[str, ModelPlan], group: Group) -> Iterator[str]:
    label = " and ".join(group.models)
    if not set(group.models) <= set(models) or len(group.models) != len(group.windows):
        yield f"a group has the models {label}, which are none of the plan"
        return
    if any(
        not 0 <= number < len(models[name].windows) for name, number in zip(group.models, group.windows, strict=True)
    ):
        yield f"a group of {label} is in a window that there is not"
        return
    if not 0 <= group.num_hot <= group.num_copies:
        yield f"{group.num_hot} of {group.num_copies} copies of {label} are hot"
    if group.copies and len(set(group.copies)) != group.num_copies:
        yield f"copies of {label} are listed twice, or not at all"
    pins = {models[name].pin for name in group.models}
    if "hbm" in pins and group.num_hot != group.num_copies:
        yield f"{label} is pinned to hbm and not hot"
    if "ddr" in pins and group.num_hot:
        yield f"{label} is pinned to ddr and hot"
    if not _agree(group.switch_seconds, _switch_seconds(plan, [models[name] for name in group.models], group.windows)):
        yield f"a switch to {label} does not take {group.switch_seconds} s over the links of its target"


def _counting_problems(plan: RackPlan) -> Iterator[str]:
    found: Counter[tuple[str, int]] = Counter()
    for group in plan.residency.groups:
        found.update(dict.fromkeys(zip(group.models, group.windows, strict=True), group.num_copies))
    wanted = {
        (model.name, number): window.num_copies for model in plan.models for number, window in enumerate(model.windows)
    }
    if dict(found) != wanted:
        yield "the groups' copies are not those of the models"
    for model in plan.models:
        groups = [group for group in plan.residency.groups if group.models == (model.name,)]
        rate = sum(group.num_copies * group.requests_per_s for group in groups)
        if groups and not _agree(rate, model.requests_per_s):
            yield f"the groups of {model.name!r} are asked for {rate} times a second, the model {model.requests_per_s}"


def _cost_problems(plan: RackPlan) -> Iterator[str]:
    cost = sum(
        (group.num_copies - group.num_hot) * group.requests_per_s * group.switch_seconds
        for group in plan.residency.groups
    )
    if not _agree(cost, plan.residency.cost):
        yield f"its cost is {cost}, not {plan.residency.cost}"
    if not 0 <= plan.residency.lower_bound <= plan.residency.cost * (1 + _RELATIVE):
        yield f"its lower bound {plan.residency.lower_bound} is beyond its cost {plan.residency.cost}"


def _switching_problems(plan: RackPlan) -> Iterator[str]:
    groups = plan.residency.groups
    warm = sum((group.num_copies - group.num_hot) * group.requests_per_s for group in groups)
    if not _agree(warm, plan.switching.warm_requests_per_s):
        yield f"{warm} requests a second are for warm models, not {plan.switching.warm_requests_per_s}"
    if plan.switching.share_of_time > plan.residency.cost * (1 + _RELATIVE):
        yield "switches take more than one for each request for a warm model"
    names = {model.name for model in plan.models}
    if set(plan.switching.seconds) != names or any(set(row) != names for row in plan.switching.seconds.values()):
        yield "the switch matrix has not one row and one column for each model"
        return
    for wanted in names:
        times = [
            group.switch_seconds for group in groups if wanted in group.models and group.num_hot < group.num_copies
        ]
        for busy in names - {wanted}:
            seconds = plan.switching.seconds[busy][wanted]
            if not any(_agree(seconds, time) for time in times or [0.0]):
                yield f"a switch from {busy!r} to {wanted!r} does not take {seconds} s"


def _hbm_bytes(plan: RackPlan, models: Mapping[str, ModelPlan], device: int) -> int:
    """Returns what a device holds at its fullest: hot weights, pinned KV, the arena, the slot."""
    hot = arena = slot = 0
    for group in plan.residency.groups:
        members = [(models[name], number) for name, number in zip(group.models, group.windows, strict=True)]
        held = [each for each in (_held(model, number, device) for model, number in members) if each is not None]
        weights = sum(each.weights_bytes for each in held)
        kv = sum(each.kv_bytes for each in held)
        is_pinned = any(model.pin == "hbm" for model, _ in members)
        hot += group.num_hot * weights + (group.num_copies * kv if is_pinned else 0)
        arena = max(arena, max((each.workspace_bytes for each in held), default=0) + (0 if is_pinned else kv))
        if group.num_hot < group.num_copies:
            slot = max(slot, weights)
    return hot + arena + slot


def _ddr_bytes(plan: RackPlan, device: int) -> int:
    total = 0
    for model in plan.models:
        for number, window in enumerate(model.windows):
            held = _held(model, number, device)
            total += window.num_copies * held.weights_bytes if held else 0
    return total


def _held(model: ModelPlan, number: int, device: int) -> DeviceBytes | None:
    """Returns what a device has of a copy in one of a model's windows; None if that is elsewhere."""
    place = device - model.windows[number].first_device
    return model.devices[place] if 0 <= place < model.num_devices else None


def _switch_seconds(plan: RackPlan, models: Sequence[ModelPlan], windows: Sequence[int] | None = None) -> float:
    """Returns the time until the fullest device has its part, of all the models together."""
    link = plan.target.links["ddr->hbm"]
    numbers = windows or (0,) * len(models)
    parts = [
        sum(
            held.weights_bytes
            for model, number in zip(models, numbers, strict=True)
            if (held := _held(model, number, device)) is not None
        )
        for device in range(plan.target.num_devices)
    ]
    return link.latency_seconds + max(parts) / link.bandwidth_bytes_per_s


def _agree(one: float, other: float) -> bool:
    return abs(one - other) <= _RELATIVE * max(abs(one), abs(other), 1e-12)

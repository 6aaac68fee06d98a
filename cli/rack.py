"""The plan of a rack as tables and as JSON: what `bundle` and `check` print of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from .output import format_bytes, format_seconds, print_facts, print_table

if TYPE_CHECKING:
    from ..compiler.rack.plan import ModelPlan, RackPlan
    from .legality import Legality

__all__ = ["plan_data", "print_plan", "verdict_data"]


def plan_data(plan: RackPlan) -> dict[str, object]:
    """Returns a plan as JSON has it for programs."""
    residency = plan.residency
    return {
        "plan_only": True,
        "target": plan.target.name,
        "budget": asdict(plan.budget),
        "traffic": plan.traffic,
        "models": {model.name: _model_data(plan, model) for model in plan.models},
        "residency": {
            "cost": residency.cost,
            "lower_bound": residency.lower_bound,
            "gap": residency.gap,
            "status": residency.status,
            "seconds": residency.seconds,
            "num_variables": residency.num_variables,
        },
        "switching": {key: value for key, value in asdict(plan.switching).items() if key != "seconds"},
        "switch_seconds": plan.switching.seconds,
        "seconds": plan.seconds,
    }


def verdict_data(plan: RackPlan, verdict: Legality) -> dict[str, object]:
    """Returns a plan and what the legalizer says of it as JSON has it."""
    return {
        **plan_data(plan),
        "errors": verdict.errors,
        "warnings": verdict.warnings,
        "levers": verdict.levers,
        "shortages": [
            {**asdict(each), "unit": "bytes", "shortfall_bytes": each.demand_bytes - each.limit_bytes}
            for each in plan.shortages
        ],
        "utilization": {
            tier: {**asdict(use), "utilization": use.utilization} for tier, use in verdict.utilization.items()
        },
    }


def _model_data(plan: RackPlan, model: ModelPlan) -> dict[str, object]:
    return {
        "source": model.source,
        "residency": plan.residency_class(model.name),
        "copies": model.copies,
        "copies_hot": plan.num_hot(model.name),
        "copies_that_fit": plan.copies_that_fit[model.name],
        "copies_without_reserve": plan.copies_without_reserve[model.name],
        "mesh": model.mesh,
        "stages": model.num_stages,
        "windows": [asdict(window) for window in model.windows],
        "devices": [asdict(held) for held in model.devices],
        "steps": [asdict(step) for step in model.steps],
        "step_cost_seconds": model.step_cost_seconds,
        "step_lower_bound_seconds": model.step_lower_bound_seconds,
        "ttft_seconds": model.ttft_seconds,
        "decode_seconds": model.decode_seconds,
        "requests_per_s": model.requests_per_s,
        "switch_seconds": model.switch_seconds,
    }


def print_plan(plan: RackPlan) -> None:
    """Prints a plan as tables."""
    rows = [
        (
            _name(model),
            plan.residency_class(model.name),
            str(plan.num_hot(model.name)),
            _mesh(model),
            *(format_bytes(max(getattr(held, f"{kind}_bytes") for held in model.devices)) for kind in _KINDS),
            "-" if model.decode_seconds is None else format_seconds(model.decode_seconds),
            format_seconds(model.ttft_seconds),
            format_seconds(model.switch_seconds),
            f"{model.requests_per_s:.3g}/s",
            f"{model.step_gap:.1%}",
        )
        for model in plan.models
    ]
    heads = ["model ", "residency ", "hot", "mesh ", *_KINDS, "decode step", "TTFT", "switch", "traffic", "gap"]
    print_table(
        heads,
        rows,
        title=f"{plan.name} on {plan.target.name}; bytes are those of each device, gap is the layout's to its bound",
    )
    print()
    _print_tiers(plan)
    print()
    names = [model.name for model in plan.models]
    rows = [(busy, *(format_seconds(row[wanted]) for wanted in names)) for busy, row in plan.switching.seconds.items()]
    title = "seconds until the model above is hot after the one on the left was busy; 0 if it is hot anyway"
    print_table(["busy ", *names], rows, title=title)
    print()
    print_facts(_facts(plan))


_KINDS = ("weights", "kv", "workspace")


def _name(model: ModelPlan) -> str:
    return model.name if model.copies == 1 else f"{model.name} x {model.copies}"


def _mesh(model: ModelPlan) -> str:
    shape = " x ".join(f"{axis}={size}" for axis, size in model.mesh.items()) or "one device"
    stages = f"{model.num_stages} stages of " if model.num_stages > 1 else ""
    windows = f", {len(model.windows)} places" if len(model.windows) > 1 else ""
    return f"{stages}{shape}{windows}"


def _print_tiers(plan: RackPlan) -> None:
    devices = range(plan.target.num_devices)
    rows: list[tuple[str, ...]] = []
    tiers: tuple[tuple[Literal["hbm", "ddr"], int], ...] = (("hbm", plan.budget.hbm), ("ddr", plan.budget.ddr))
    for tier, budget in tiers:
        about = plan.target.tiers[tier]
        held = max(plan.held_bytes(tier, device) for device in devices)
        pinned = max(plan.held_bytes(tier, device, is_pinned=True) for device in devices)
        sizes = (held, pinned, budget, about.capacity_bytes, about.reserved_bytes)
        rows.append((tier, *map(format_bytes, sizes), f"{held / budget:.0%}"))
    heads = ["tier ", "held", "pinned", "budget", "capacity", "reserved", "utilization"]
    print_table(heads, rows, title="the fullest device")


def _facts(plan: RackPlan) -> list[tuple[str, str]]:
    residency, switching = plan.residency, plan.switching
    source = {
        "assumed": "1 request/s, all models as likely (assumed: no traffic was given)",
        "rates": "as the bundle file says",
        "trace": "rates of the trace",
    }[plan.traffic]
    facts = [
        (
            "who is hot",
            f"{residency.status}: switching {residency.cost:.3g} s/s at most, lower bound {residency.lower_bound:.3g}, "
            f"gap {residency.gap:.1%}, {residency.num_variables} variables, {format_seconds(residency.seconds)}",
        ),
        ("traffic", source),
        (
            "switches",
            f"{switching.switches_per_s:.3g}/s expected of {switching.warm_requests_per_s:.3g} requests/s for warm "
            f"models, {100 * switching.share_of_time:.3g} % of the time",
        ),
    ]
    if switching.replayed_switches_per_s is not None and switching.replayed_share_of_time is not None:
        share = f"{100 * switching.replayed_share_of_time:.3g} % of the time"
        facts.append(("in the trace's order", f"{switching.replayed_switches_per_s:.3g}/s, {share}"))
    facts += [(f"copies of {model.name}", _copies(plan, model)) for model in plan.models if model.copies > 1]
    return [*facts, ("planned in", format_seconds(plan.seconds))]


def _copies(plan: RackPlan, model: ModelPlan) -> str:
    fits, without = plan.copies_that_fit[model.name], plan.copies_without_reserve[model.name]
    others = " beside the other models" if len(plan.models) > 1 else ""
    text = f"{fits} fit in ddr{others}, {model.copies} asked for, {plan.num_hot(model.name)} hot"
    reserved = plan.target.tiers["ddr"].reserved_bytes
    if reserved and plan.budget.ddr == plan.target.tiers["ddr"].usable_bytes:
        text += f"; without the {format_bytes(reserved)} of each device's ddr that the target reserves, {without}"
    return text

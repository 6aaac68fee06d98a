"""The machine that a trace is simulated on: of a bundle, of a rack's plan, or of a bundle file, planned first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from ..compiler.bundle.manifest import TierBudget
    from ..compiler.rack.plan import RackPlan
    from ..compiler.target import Target
    from ..runtime.simulation.machine import Machine

__all__ = ["simulated_machine"]


def simulated_machine(path: Path, target: str | None, *, hbm: str | None, ddr: str | None, link: str | None) -> Machine:
    """Returns the machine that a path names.

    Args:
        path: Of a bundle, of a rack's plan, or of a bundle file for a rack.
        target: Another one than it says itself.
        hbm: Bytes of hbm, as text; what it says itself by default.
        ddr: The same of ddr.
        link: Bytes a second from ddr to hbm; the target's by default.
    """
    return _with_link(_machine(path, target, hbm, ddr), link)


def _machine(path: Path, target: str | None, hbm: str | None, ddr: str | None) -> Machine:
    from ..compiler.bundle.reader import open_bundle
    from ..compiler.rack.file import is_plan, open_plan
    from ..compiler.target import load_target
    from ..runtime.simulation.machine import machine_of_bundle
    from ..runtime.simulation.rack import machine_of_plan

    if path.is_file():
        plan = _planned(path, target)
        return machine_of_plan(plan, budget=_budget(plan.budget.hbm, plan.budget.ddr, hbm, ddr))
    if is_plan(path):
        plan, _ = open_plan(path)
        if target is not None and load_target(target) != plan.target:
            raise ConfigurationError(f"the plan is of target {plan.target.name!r}; plan its bundle file for {target!r}")
        return machine_of_plan(plan, budget=_budget(plan.budget.hbm, plan.budget.ddr, hbm, ddr))
    manifest = open_bundle(path).manifest
    machine = None if target is None else load_target(target)
    return machine_of_bundle(manifest, machine, _budget(manifest.budget.hbm, manifest.budget.ddr, hbm, ddr))


def _planned(file: Path, target: str | None) -> RackPlan:
    from ..compiler.rack.bundle_file import read_bundle_file
    from ..compiler.rack.planner import is_planned_only, plan_rack, target_of

    spec = read_bundle_file(file, target=target)
    machine = target_of(spec, file.parent)
    if not is_planned_only(machine):
        raise ConfigurationError(
            f"{file} is for {machine.name}, whose steps are measured: make the bundle with `plait bundle {file}` first"
        )
    return plan_rack(spec, base=file.parent)


def _budget(hbm: int, ddr: int, asked_hbm: str | None, asked_ddr: str | None) -> TierBudget:
    from ..compiler.bundle.manifest import TierBudget
    from ..compiler.bundle.spec import parse_bytes

    return TierBudget(
        hbm if asked_hbm is None else parse_bytes(asked_hbm), ddr if asked_ddr is None else parse_bytes(asked_ddr)
    )


def _with_link(machine: Machine, bandwidth: str | None) -> Machine:
    """Returns the machine with another bandwidth from ddr to hbm."""
    if bandwidth is None:
        return machine
    from ..compiler.bundle.spec import parse_bytes

    link = machine.target.link("ddr", "hbm")
    links = {
        **machine.target.links,
        "ddr->hbm": dataclasses.replace(link, bandwidth_bytes_per_s=parse_bytes(bandwidth)),
    }
    target: Target = dataclasses.replace(machine.target, links=links)
    return dataclasses.replace(machine, target=target)

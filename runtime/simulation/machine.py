"""A machine to replay a trace on: models, what they may use, and what their steps cost.

Made of a bundle with programs, whose steps were measured, or of the plan of a rack (`rack.py`), whose steps were
scheduled. Nothing of the bundle's files but the manifest is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ...compiler.bundle.manifest import Manifest, ModelEntry, Route, SpeculativePair, TierBudget
from ...compiler.target import Target
from ..events import Step
from .costs import StepCost, measured_costs

__all__ = ["Machine", "StepPower", "machine_of_bundle"]

StepPower: TypeAlias = Callable[[Step], float]  # watts of all devices while a step computes


@dataclass(frozen=True)
class Machine:
    """What a trace is replayed on."""

    name: str  # of the bundle
    models: tuple[ModelEntry, ...]
    budget: TierBudget
    target: Target
    step_cost: StepCost
    step_watts: StepPower | None  # None: the target says nothing of power
    source: str  # of the costs, for people
    workflows: tuple[tuple[str, ...], ...] = ()  # models that are asked for one after the other
    routes: Mapping[str, Route] = field(default_factory=dict[str, Route])  # names for models that can stand for others
    speculative: tuple[SpeculativePair, ...] = ()

    @property
    def idle_watts(self) -> float | None:
        """What all devices draw while nothing computes."""
        power = self.target.power
        return None if power is None else power.idle_watts * self.target.num_devices


def machine_of_bundle(manifest: Manifest, target: Target | None, budget: TierBudget) -> Machine:
    """Returns the machine that serves a bundle.

    Args:
        manifest: Of the bundle.
        target: Another one than the bundle's own, such as a calibrated one.
        budget: What it may use.
    """
    chosen = target or manifest.target
    power = chosen.power
    calibrated = chosen.serving is not None
    return Machine(
        name=manifest.name,
        models=manifest.models,
        budget=budget,
        target=chosen,
        step_cost=measured_costs(manifest.models, chosen),
        step_watts=None if power is None else lambda step: power.peak_watts * chosen.num_devices,
        workflows=tuple(manifest.workflows.values()),
        routes=manifest.routes,
        speculative=manifest.speculative,
        source="steps as calibrated" if calibrated else "steps as measured when the bundle was made, the host's not",
    )

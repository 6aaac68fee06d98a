"""The plan of a bundle for a rack, plain data that goes to JSON and back: a `RackPlan`.

Bytes are those of each device. On every device HBM holds, at all times:

- the weights of the models that are hot, and the KV caches of those that are pinned to hbm;
- an arena for the model that is busy: its workspace, and its KV cache unless it is pinned. One size for all models;
- if any model is warm, a slot as large as the largest warm model's part. A request for a warm model that is not in
  the slot is a switch: its weights come from DDR, over the links of all its devices at once.

DDR holds the weights of all models, hot ones too: they are read-only, so what leaves HBM is dropped, never written
back. `verify.residency.verify_rack_plan` checks all of it. The memory system and its runtime: arXiv 2405.07518.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import pydantic

from ...errors import BundleIntegrityError, BundleVersionError, DoesNotFitError
from ..bundle.manifest import Route
from ..bundle.reader import PLAN_FORMAT
from ..target import Target

__all__ = [
    "VERSION",
    "Budget",
    "DeviceBytes",
    "Group",
    "ModelPlan",
    "RackPlan",
    "Residency",
    "ResidencyClass",
    "Shortage",
    "StepPlan",
    "Switching",
    "Window",
]

VERSION = 2

ResidencyClass: TypeAlias = Literal["pinned hot", "hot", "partly hot", "warm", "does not fit"]


@dataclass(frozen=True)
class DeviceBytes:
    """What one device needs for a copy of a model."""

    weights_bytes: int
    kv_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class StepPlan:
    """One configuration of a model on its devices."""

    configuration: str
    phase: str
    batch: int
    new_tokens: int  # of each sequence
    context: int
    seconds: float
    joules: float | None  # of all devices
    sequence_seconds: float = 0.0  # that each sequence but one adds, beside the bytes of its cache


@dataclass(frozen=True)
class Window:
    """Devices in a row that hold some copies of a model."""

    first_device: int
    num_copies: int


@dataclass(frozen=True)
class ModelPlan:
    """A model, or many of the same shapes, and what each copy takes."""

    name: str
    source: str
    dtype: str  # that it is computed in
    weights: str  # form that they are kept in
    copies: int
    aliases: tuple[str, ...]
    pin: Literal["hbm", "ddr"] | None
    is_routable: bool
    parameters: int
    mesh: dict[str, int]  # of one pipeline stage
    num_stages: int
    windows: tuple[Window, ...]  # where copies are
    devices: tuple[DeviceBytes, ...]  # of a window, in its order
    steps: tuple[StepPlan, ...]
    step_cost_seconds: float  # of the busiest configuration's partition, before sections
    step_lower_bound_seconds: float
    requests_per_s: float  # for all copies together
    switch_seconds: float  # DDR -> HBM of one copy, all devices at once
    kv_tokens: int | None = None  # that its KV cache holds; None for an encoder

    @property
    def num_devices(self) -> int:
        """Devices of one copy."""
        return len(self.devices)

    def on(self, device: int) -> list[tuple[int, DeviceBytes]]:
        """Returns the copies that a device has a part of: of each window how many, and the part of one."""
        places = [(window.num_copies, device - window.first_device) for window in self.windows]
        return [(count, self.devices[place]) for count, place in places if 0 <= place < len(self.devices)]

    @property
    def ttft_seconds(self) -> float:
        """Time to the first token of a full prompt, or of an encoder's answer; without a switch."""
        prefills = [step.seconds for step in self.steps if step.phase != "decode"]
        return max(prefills)

    @property
    def step_gap(self) -> float:
        """How far the busiest step's layout may be from the best on its mesh, relative to it."""
        cost = self.step_cost_seconds
        return max(0.0, (cost - self.step_lower_bound_seconds) / cost) if cost > 0 else 0.0

    @property
    def decode_seconds(self) -> float | None:
        """Longest decode step; None for an encoder."""
        return max((step.seconds for step in self.steps if step.phase == "decode"), default=None)


@dataclass(frozen=True)
class Group:
    """Copies that are alike: of the same model or pair, on the same devices, asked for as often."""

    models: tuple[str, ...]  # that are hot together: one, or the two of speculative decoding
    windows: tuple[int, ...]  # of each of these models, by number
    copies: tuple[int, ...]  # numbers, where traffic tells them apart
    num_copies: int
    num_hot: int
    requests_per_s: float  # for one copy
    switch_seconds: float  # of one copy


@dataclass(frozen=True)
class Residency:
    """Which copies are hot together, with its certificate."""

    groups: tuple[Group, ...]
    cost: float  # seconds of switching a second, if every request for a warm copy is a switch
    lower_bound: float
    status: Literal["optimal", "feasible", "infeasible"]
    seconds: float  # that the search took
    num_variables: int

    @property
    def gap(self) -> float:
        """How far the cost may be from the least possible, relative to it."""
        return 0.0 if self.cost <= 0 else max(0.0, (self.cost - self.lower_bound) / self.cost)


@dataclass(frozen=True)
class Switching:
    """What switches cost given the traffic."""

    seconds: dict[str, dict[str, float]]  # [busy][wanted]; 0 if the wanted one is hot
    warm_requests_per_s: float  # requests for what is not hot
    switches_per_s: float  # expected, if arrivals are independent: some find their model still in the slot
    share_of_time: float  # that these take
    replayed_switches_per_s: float | None = None  # in the order of the trace, if there is one
    replayed_share_of_time: float | None = None


@dataclass(frozen=True)
class Budget:
    """Bytes of each device that the bundle may use."""

    hbm: int
    ddr: int


@dataclass(frozen=True)
class Shortage:
    """Something that does not fit, as a report."""

    subject: str
    models: tuple[str, ...]  # that are in the way or left out
    tier: Literal["hbm", "ddr"]
    device: int
    demand_bytes: int
    limit_bytes: int
    largest_terms: tuple[tuple[str, int], ...]
    levers: tuple[str, ...]

    def error(self) -> DoesNotFitError:
        """Returns it as an exception."""
        return DoesNotFitError(
            subject=self.subject,
            tier=self.tier,
            demand_bytes=self.demand_bytes,
            limit_bytes=self.limit_bytes,
            largest_terms=self.largest_terms,
            levers=self.levers,
        )


@dataclass(frozen=True)
class RackPlan:
    """What a bundle does on a rack."""

    name: str
    target: Target
    budget: Budget
    models: tuple[ModelPlan, ...]
    residency: Residency
    switching: Switching
    traffic: Literal["assumed", "rates", "trace"]
    copies_that_fit: dict[str, int]  # of each model in DDR, all others as they are
    copies_without_reserve: dict[str, int]  # likewise, if the target's DDR were the models' alone
    shortages: tuple[Shortage, ...] = ()
    workflows: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    routes: dict[str, Route] = field(default_factory=dict[str, Route])
    seconds: float = 0.0  # that planning took
    format: Literal["plait-rack-plan"] = PLAN_FORMAT
    version: int = VERSION
    plan_only: Literal[True] = True

    def model(self, name: str) -> ModelPlan:
        """Returns a model by its name."""
        return next(model for model in self.models if model.name == name)

    def num_hot(self, name: str) -> int:
        """Returns how many copies of a model are hot."""
        return sum(group.num_hot for group in self.residency.groups if name in group.models)

    def held_bytes(self, tier: Literal["hbm", "ddr"], device: int, *, is_pinned: bool = False) -> int:
        """Returns what a device holds at its fullest, or of it what is pinned."""
        if tier == "ddr":
            held = [(model.on(device), model) for model in self.models if not is_pinned or model.pin == "ddr"]
            return sum(count * part.weights_bytes for found, _ in held for count, part in found)
        return _hbm_bytes(self, device, is_pinned=is_pinned)

    def residency_class(self, name: str) -> ResidencyClass:
        """Returns where a model is."""
        if any(name in shortage.models for shortage in self.shortages):
            return "does not fit"
        model, hot = self.model(name), self.num_hot(name)
        if model.pin == "hbm":
            return "pinned hot"
        if hot == 0:
            return "warm"
        return "hot" if hot == model.copies else "partly hot"

    def to_json(self) -> bytes:
        """Returns it as JSON text."""
        return _adapter().dump_json(self, indent=1)

    @staticmethod
    def from_json(data: bytes) -> RackPlan:
        """Reads what `to_json` wrote.

        Raises:
            BundleVersionError: if its format is newer than this plait reads.
            BundleIntegrityError: if it is no plan.
        """
        try:
            header = _header().validate_json(data)
            if header.version > VERSION:
                raise BundleVersionError(
                    f"the plan has version {header.version}, this plait reads up to {VERSION}; install a newer one"
                )
            return _adapter().validate_json(data)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "top level"
            raise BundleIntegrityError(f"manifest.json is no plan of a rack: {where}: {first['msg']}") from None


def _hbm_bytes(plan: RackPlan, device: int, *, is_pinned: bool) -> int:
    resident = arena = slot = 0
    for group in plan.residency.groups:
        members = [plan.model(name) for name in group.models]
        windows = [member.windows[number] for member, number in zip(members, group.windows, strict=True)]
        places = [device - window.first_device for window in windows]
        held = [
            member.devices[place]
            for member, place in zip(members, places, strict=True)
            if 0 <= place < member.num_devices
        ]
        kv, weights = sum(each.kv_bytes for each in held), sum(each.weights_bytes for each in held)
        stays = any(member.pin == "hbm" for member in members)
        if stays or not is_pinned:
            resident += group.num_hot * (weights + (kv if stays else 0))
        arena = max(arena, max((each.workspace_bytes for each in held), default=0) + (0 if stays else kv))
        slot = max(slot, weights if group.num_hot < group.num_copies else 0)
    return resident if is_pinned else resident + arena + slot


class _Header(pydantic.BaseModel):
    version: int


@functools.cache
def _header() -> pydantic.TypeAdapter[_Header]:
    return pydantic.TypeAdapter(_Header)


@functools.cache
def _adapter() -> pydantic.TypeAdapter[RackPlan]:
    return pydantic.TypeAdapter(RackPlan)
